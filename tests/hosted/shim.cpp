// What CUDA C++ brings and C++ does not, so that g++ compiles node/gpu/kernels.cu unchanged. Threads
// run one after another, forward or backward: what depends on their order shows as a difference.
// KERNELS is the path of kernels.cu; EXPORTS names every kernel in an EXPORT(...).

#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

struct Three {
  unsigned x = 0, y = 0, z = 0;
};

static Three blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline

// -ffp-contract=off keeps these two operations apart, as the names promise.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }

static inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

#include KERNELS

template <class... A, std::size_t... I>
static void once(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned grid, unsigned threads, int backward,
                   void** arguments) {
  gridDim.x = grid;
  blockDim.x = threads;
  const unsigned long long total = (unsigned long long)grid * threads;
  for (unsigned long long n = 0; n < total; ++n) {
    const unsigned long long thread = backward ? total - 1 - n : n;
    blockIdx.x = (unsigned)(thread / threads);
    threadIdx.x = (unsigned)(thread % threads);
    once(kernel, arguments, std::index_sequence_for<A...>());
  }
}

template <class... A>
static int count(void (*)(A...)) {
  return sizeof...(A);
}

#define EXPORT(name)                                                                        \
  extern "C" void run_##name(unsigned grid, unsigned threads, int backward, void** args) { \
    launch(name, grid, threads, backward, args);                                            \
  }                                                                                         \
  extern "C" int arguments_##name() { return count(name); }

EXPORTS
