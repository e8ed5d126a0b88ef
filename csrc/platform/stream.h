// A CUDA stream as an opaque pointer, so that headers and ops.cpp need no CUDA header.
#pragma once

namespace lsfast {
using Stream = void*;
}
