// `import lsfast._C` loads the operators: importing the shared library runs its registrations, the module is empty.
#include <Python.h>

#include "platform/dispatch.h"

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  try {
    lsfast::kernels();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  PyModule_AddStringConstant(module, "cpu_capability", lsfast::kernels().name);
#if defined(LSFAST_WITH_CUDA)
  PyModule_AddIntConstant(module, "has_cuda", 1);
#else
  PyModule_AddIntConstant(module, "has_cuda", 0);
#endif
#if defined(LSFAST_CUDA_ARCHITECTURES)
  PyModule_AddStringConstant(module, "cuda_architectures", LSFAST_CUDA_ARCHITECTURES);
#else
  PyModule_AddStringConstant(module, "cuda_architectures", "");
#endif
  return module;
}
