// A program for AddressSanitizer, which ends the process it finds a fault in: `faults_main right` runs the right
// kernels of faults.cu and must end well; `faults_main global` and `faults_main static` run past an array.
#include <cstdio>
#include <cstring>
#include <vector>

extern "C" {
const char* launch_sum(const float* x, float* sums, int blocks);
const char* launch_transpose(const float* x, float* y, int rows, int columns);
const char* launch_shuffle(const double* x, double* out, int blocks);
const char* launch_divergent_shuffle(float* y);
const char* launch_divergent_barrier(float* y);
const char* launch_global_overrun(float* y, int n);
const char* launch_static_overrun(float* y);
void lsfast_emulation_schedule(int kind, unsigned long long seed);
}

namespace {

bool right_kernels_run() {
  std::vector<float> x(1024, 1.0f);
  std::vector<float> y(1024, 0.0f);
  std::vector<double> numbers(1024, 1.0);
  std::vector<double> warps(32 * 5);
  for (int kind = 0; kind < 3; ++kind) {
    lsfast_emulation_schedule(kind, 1);
    if (launch_sum(x.data(), y.data(), 4) != nullptr || y[3] != 256.0f) return false;
    // Unwound threads leave stacks that the next launch can use.
    if (launch_divergent_shuffle(y.data()) == nullptr || launch_divergent_barrier(y.data()) == nullptr) return false;
    if (launch_transpose(x.data(), y.data(), 32, 32) != nullptr || y[1023] != 1.0f) return false;
    if (launch_shuffle(numbers.data(), warps.data(), 4) != nullptr || warps[0] != 32.0) return false;
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  std::vector<float> y(256);
  if (std::strcmp(arguments[1], "right") == 0) return right_kernels_run() ? 0 : 1;
  if (std::strcmp(arguments[1], "global") == 0) launch_global_overrun(y.data(), 256);
  if (std::strcmp(arguments[1], "static") == 0) launch_static_overrun(y.data());
  return 0;
}
