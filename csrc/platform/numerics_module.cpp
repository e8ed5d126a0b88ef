// `lsfast._numerics`: the scalar numerics over NumPy arrays, for oracle tests, and nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "numerics/activation.h"
#include "numerics/exponential.h"
#include "numerics/half.h"
#include "numerics/philox.h"
#include "numerics/scheme.h"

namespace py = pybind11;

namespace lsfast {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Exponents and mantissas of floats; the bits beside the sign of integers and of the table, which have no exponent.
ElementFormat format_of(int exponent_bits, int mantissa_bits, const std::string& special) {
  const char* const names[] = {"finite", "nan_only", "ieee", "integer", "full_integer", "fraction", "table"};
  int kind = 0;
  while (kind < 7 && special != names[kind]) ++kind;
  if (kind == 7)
    throw py::value_error(
        "special must be one of finite, nan_only, ieee, integer, full_integer, fraction, table, got " + special);
  const bool is_float = kind <= static_cast<int>(Special::kIeee);
  if (is_float ? exponent_bits < 2 || exponent_bits > 8 || mantissa_bits < 0 || mantissa_bits > 23
               : exponent_bits != 0 || mantissa_bits < 3 || mantissa_bits > 7) {
    throw py::value_error(
        "a float has 2 to 8 exponent bits and 0 to 23 mantissa bits, another element 0 and 3 to 7, got " +
        std::to_string(exponent_bits) + " and " + std::to_string(mantissa_bits));
  }
  return make_element_format(exponent_bits, mantissa_bits, static_cast<Special>(kind));
}

template <class Out, class In, class Function>
py::array_t<Out> map(const Array<In>& x, const Function& function) {
  py::array_t<Out> result(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  const In* in = x.data();
  Out* out = result.mutable_data();
  for (py::ssize_t i = 0; i < x.size(); ++i) out[i] = function(in[i], i);
  return result;
}

template <class F>
py::array_t<F> round(const Array<F>& x, int exponent_bits, int mantissa_bits, const std::string& special,
                     const std::string& rounding, const std::string& overflow, const py::object& words,
                     int random_bits) {
  QuantScheme scheme{};
  scheme.element = format_of(exponent_bits, mantissa_bits, special);
  const Rounding mode = rounding == "stochastic"    ? Rounding::kStochastic
                        : rounding == "toward_zero" ? Rounding::kTowardZero
                                                    : Rounding::kNearest;
  const Overflow beyond = overflow == "inf"   ? Overflow::kInfinity
                          : overflow == "nan" ? Overflow::kNan
                                              : Overflow::kSaturate;
  Array<uint32_t> draws;
  if (mode == Rounding::kStochastic) {
    draws = words.cast<Array<uint32_t>>();
    if (draws.size() != x.size()) throw py::value_error("words must have as many entries as x");
  }
  scheme.rounding = mode;
  scheme.overflow = beyond;
  scheme.random_bits = random_bits;
  return map<F>(x, [&](F value, py::ssize_t i) {
    return round_scaled(value, scheme, mode == Rounding::kStochastic ? draws.data()[i] : 0u);
  });
}

}  // namespace

PYBIND11_MODULE(_numerics, m) {
  m.doc() = "Scalar numerics of lsfast over NumPy arrays: the functions that every kernel is made of.";

  const auto define_round = [&](auto zero) {
    using F = decltype(zero);
    m.def("round", &round<F>, py::arg("x").noconvert(), py::arg("exponent_bits"), py::arg("mantissa_bits"),
          py::arg("special"), py::arg("rounding") = "nearest", py::arg("overflow") = "saturate",
          py::arg("words") = py::none(), py::arg("random_bits") = 32,
          "x rounded to an element format; `words` are the random 32-bit words of stochastic rounding.");
  };
  define_round(float{});
  define_round(double{});

  m.def(
      "encode",
      [](const Array<float>& x, int exponent_bits, int mantissa_bits, const std::string& special) {
        QuantScheme scheme{};
        scheme.element = format_of(exponent_bits, mantissa_bits, special);
        return map<uint32_t>(x, [&](float value, py::ssize_t) { return encode_rounded(value, scheme); });
      },
      py::arg("x"), py::arg("exponent_bits"), py::arg("mantissa_bits"), py::arg("special"),
      "The codes of numbers that are on the grid of an element format.");
  m.def(
      "decode",
      [](const Array<uint32_t>& codes, int exponent_bits, int mantissa_bits, const std::string& special) {
        QuantScheme scheme{};
        scheme.element = format_of(exponent_bits, mantissa_bits, special);
        return map<float>(codes, [&](uint32_t code, py::ssize_t) { return decode_code(code, scheme); });
      },
      py::arg("codes"), py::arg("exponent_bits"), py::arg("mantissa_bits"), py::arg("special"),
      "The numbers that codes of an element format stand for.");
  m.def(
      "largest",
      [](int exponent_bits, int mantissa_bits, const std::string& special) {
        return format_of(exponent_bits, mantissa_bits, special).largest;
      },
      py::arg("exponent_bits"), py::arg("mantissa_bits"), py::arg("special"), "The largest number of a format.");
  m.def(
      "philox",
      [](const Array<uint64_t>& index, uint64_t seed, uint64_t stream) {
        return map<uint32_t>(index, [&](uint64_t i, py::ssize_t) { return philox_word(seed, stream, i); });
      },
      py::arg("index"), py::arg("seed"), py::arg("stream") = 0, "The Philox4x32-10 word of each element index.");
  m.def(
      "activation",
      [](const Array<double>& x, int kind) {
        const auto part = [&](int which) {
          return map<double>(x, [&](double value, py::ssize_t) {
            const Derivatives<double> d = activation_derivatives(value, static_cast<Activation>(kind));
            return which == 0 ? d.value : which == 1 ? d.first : d.second;
          });
        };
        return std::make_tuple(part(0), part(1), part(2));
      },
      py::arg("x"), py::arg("kind"), "(f, f', f'') of an activation; see csrc/numerics/activation.h for the kinds.");
  const auto define_exponential = [&](auto zero) {
    using F = decltype(zero);
    m.def(
        "exponential",
        [](const Array<F>& x) { return map<F>(x, [](F value, py::ssize_t) { return exponential(value); }); },
        py::arg("x").noconvert(), "exp(x) by csrc/numerics/exponential.h.");
  };
  define_exponential(float{});
  define_exponential(double{});
  m.def(
      "to_half",
      [](const Array<float>& x, bool bfloat) {
        return map<uint16_t>(x, [&](float value, py::ssize_t) {
          return bfloat ? from_float<BFloat16>(value).bits : from_float<Float16>(value).bits;
        });
      },
      py::arg("x"), py::arg("bfloat"), "The bits of x as bfloat16, or as float16.");
  m.def(
      "from_half",
      [](const Array<uint16_t>& bits, bool bfloat) {
        return map<float>(bits, [&](uint16_t value, py::ssize_t) {
          return bfloat ? to_float(BFloat16{value}) : to_float(Float16{value});
        });
      },
      py::arg("bits"), py::arg("bfloat"), "bfloat16 or float16 bits as float32.");
}

}  // namespace lsfast
