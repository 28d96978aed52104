// The arithmetic of the sliding window (node/windows.py) for CUDA devices, compiled by NVRTC when a
// device is first used. It includes nothing, so that no toolkit's headers are needed.
//
// The same volume gives the same bits, always: every voxel of the sum belongs to one thread, which
// adds the blocks that see it in their order; there are no atomics. Products and sums are written
// as __fmul_rn and __fadd_rn, which no compiler may fuse, so they round as numpy's do.
//
// Axes are (k, j, i). "Filled" coordinates count from the first voxel that was filled in front of
// the volume; blocks begin at filled coordinates. The sum holds the real volume only, and of its
// slices `height` at a time: slice z lies in place z % height.

typedef long long Count;

// What all launches of a sweep share (blocks.py, Cut.frame, writes it).
struct Frame {
  int size[3];    // the real volume
  int filled[3];  // with what was filled in around it
  int before[3];  // of that, what lies in front
  int block[3];
  int reach;   // the neighbouring slices on each side of a stack
  int around;  // what lies around: 0 a value, 1 the outermost voxels, 2 the mirror image
};

// A block: its first voxel, and where its importances along each axis begin in Weights.lines.
struct Place {
  int origin[3];
  int line[3];
};

// Importances along the axes, whose product counts; or else those of a block's voxels and their sum
// over all blocks for every filled voxel, whose quotient counts.
struct Weights {
  const float* lines;
  const float* raised;
  const float* total;
};

struct Half {
  unsigned short bits;
};

__device__ __forceinline__ Count self() {
  return (Count)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ Count all() { return (Count)gridDim.x * blockDim.x; }

// ---- number types ----------------------------------------------------------------------------

__device__ __forceinline__ float number(unsigned char value) { return value; }
__device__ __forceinline__ float number(signed char value) { return value; }
__device__ __forceinline__ float number(short value) { return value; }
__device__ __forceinline__ float number(unsigned short value) { return value; }
__device__ __forceinline__ float number(int value) { return (float)value; }
__device__ __forceinline__ float number(float value) { return value; }

__device__ __forceinline__ float number(Half value) {
  const int sign = (value.bits & 0x8000) << 16;
  const int rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return __int_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Shifted into place the exponent is too small by 112; the product is exact, below 2^-14 too.
  const float magnitude = __fmul_rn(__int_as_float(rest << 13), 5.192296858534828e33f);
  return __int_as_float(__float_as_int(magnitude) | sign);
}

__device__ __forceinline__ Half half(float value) {
  const int bits = __float_as_int(value);
  const int sign = (bits >> 16) & 0x8000;
  const int rest = bits & 0x7fffffff;
  int result;
  if (rest > 0x7f800000) {
    result = 0x7e00;  // not a number
  } else if (rest >= 0x477ff000) {
    result = 0x7c00;  // 65520 and more round to infinity
  } else if (rest < 0x38800000) {
    // Below 2^-14: adding a half moves the steps of 2^-24 to the last bit, rounded to even.
    result = __float_as_int(__fadd_rn(__int_as_float(rest), 0.5f)) - 0x3f000000;
  } else {
    result = (rest + 0xfff + ((rest >> 13) & 1) - 0x38000000) >> 13;
  }
  Half made;
  made.bits = (unsigned short)(result | sign);
  return made;
}

template <class To, class From>
struct Cast {
  static __device__ __forceinline__ To of(From value) { return (To)number(value); }
};

template <class From>
struct Cast<int, From> {
  static __device__ __forceinline__ int of(From value) { return value; }
};

template <>
struct Cast<int, int> {
  static __device__ __forceinline__ int of(int value) { return value; }
};

template <class Same>
struct Cast<Same, Same> {
  static __device__ __forceinline__ Same of(Same value) { return value; }
};

template <class From>
struct Cast<Half, From> {
  static __device__ __forceinline__ Half of(From value) { return half(number(value)); }
};

template <>
struct Cast<Half, Half> {
  static __device__ __forceinline__ Half of(Half value) { return value; }
};

__device__ __forceinline__ bool finite(float value) {
  return (__float_as_int(value) & 0x7f800000) != 0x7f800000;
}

// ---- what a block sees -----------------------------------------------------------------------

// A coordinate of the volume for one that may lie outside of it, or -1 where a value is filled in.
__device__ __forceinline__ int within(int at, int length, int around) {
  if (at >= 0 && at < length) return at;
  if (around == 0) return -1;
  if (around == 1 || length == 1) return at < 0 ? 0 : length - 1;
  const int period = 2 * (length - 1);
  const int turned = ((at % period) + period) % period;
  return turned < length ? turned : period - turned;
}

// Where in the volume a channel's voxel lies that a block sees at (j, i) and at slice d of its
// depth, which begins `reach` slices before its origin; -1 where a value is filled in. Slices of a
// stack beyond the volume's end repeat the end.
__device__ __forceinline__ Count seen(const Frame* frame, const Place* place, int channel, int d,
                                      int j, int i) {
  const int slice = place->origin[0] + d - frame->reach - frame->before[0];
  const int k = within(slice, frame->size[0], frame->reach > 0 ? 1 : frame->around);
  const int row = within(place->origin[1] + j - frame->before[1], frame->size[1], frame->around);
  const int column =
      within(place->origin[2] + i - frame->before[2], frame->size[2], frame->around);
  if (k < 0 || row < 0 || column < 0) return -1;
  return (((Count)channel * frame->size[0] + k) * frame->size[1] + row) * frame->size[2] + column;
}

// Takes the last digit of a number written with digits of different lengths. Short numbers are
// divided as such: devices have no unit for long ones.
__device__ __forceinline__ int digit(Count& number, int length) {
  if (number <= 0x7fffffff) {
    const int whole = (int)number;
    number = whole / length;
    return whole - (int)number * length;
  }
  const Count rest = number / length;
  const int last = (int)(number - rest * length);
  number = rest;
  return last;
}

// A coordinate of a block as it is seen, or turned round where `flips` has the axis's bit.
__device__ __forceinline__ int turned(int at, int length, int flips, int axis) {
  return (flips >> axis) & 1 ? length - 1 - at : at;
}

// The network's input tensor for `batch` blocks from number `first` on; blocks after `last` repeat
// it. order 0: (n, c, d, j, i). 1: (n, j, i, c, d), slices and stacks with channels last.
// 2: (n, d, j, i, c), patches with channels last. flips: bit 0 turns k round, 1 j, 2 i.
template <class From, class To>
__device__ void gather(const From* volume, const To* fill, To* tensor, const Frame* frame,
                       const Place* places, int first, int last, int batch, int channels,
                       int order, int flips) {
  const int depth = frame->block[0] + 2 * frame->reach;
  const int rows = frame->block[1], columns = frame->block[2];
  const Count total = (Count)batch * channels * depth * rows * columns;
  for (Count n = self(); n < total; n += all()) {
    Count rest = n;
    int c = 0, d = 0;
    if (order == 1) d = digit(rest, depth);
    if (order != 0) c = digit(rest, channels);
    const int i = turned(digit(rest, columns), columns, flips, 2);
    const int j = turned(digit(rest, rows), rows, flips, 1);
    if (order != 1) d = digit(rest, depth);
    if (order == 0) c = digit(rest, channels);
    const int block = first + (int)rest < last ? first + (int)rest : last;
    d = turned(d, depth, flips, 0);
    const Count at = seen(frame, places + block, c, d, j, i);
    tensor[n] = at < 0 ? fill[c] : Cast<To, From>::of(volume[at]);
  }
}

#define GATHER(name, From, To)                                                                 \
  extern "C" __global__ void gather_##name(const From* volume, const To* fill, To* tensor,   \
                                           const Frame* frame, const Place* places, int first, \
                                           int last, int batch, int channels, int order,       \
                                           int flips) {                                        \
    gather<From, To>(volume, fill, tensor, frame, places, first, last, batch, channels, order, \
                     flips);                                                                   \
  }

// tissue[n] becomes 1 where a voxel that block n sees is above its channel's level (or is no
// number). Threads may write the same 1 at once; none writes anything else.
template <class From, class Level>
__device__ void mark(const From* volume, const Level* fill, const Level* level, int* tissue,
                     const Frame* frame, const Place* places, int blocks, int channels) {
  const int depth = frame->block[0] + 2 * frame->reach;
  const Count total = (Count)blocks * channels * depth * frame->block[1] * frame->block[2];
  for (Count n = self(); n < total; n += all()) {
    Count rest = n;
    const int i = digit(rest, frame->block[2]);
    const int j = digit(rest, frame->block[1]);
    const int d = digit(rest, depth);
    const int c = digit(rest, channels);
    const int block = (int)rest;
    const Count at = seen(frame, places + block, c, d, j, i);
    if (!((at < 0 ? fill[c] : Cast<Level, From>::of(volume[at])) <= level[c])) tissue[block] = 1;
  }
}

#define MARK(name, From, Level)                                                               \
  extern "C" __global__ void mark_##name(const From* volume, const Level* fill,               \
                                         const Level* level, int* tissue, const Frame* frame, \
                                         const Place* places, int blocks, int channels) {     \
    mark<From, Level>(volume, fill, level, tissue, frame, places, blocks, channels);          \
  }

GATHER(uint8_float32, unsigned char, float)
GATHER(int8_float32, signed char, float)
GATHER(int16_float32, short, float)
GATHER(uint16_float32, unsigned short, float)
GATHER(int32_float32, int, float)
GATHER(float16_float32, Half, float)
GATHER(float32_float32, float, float)
GATHER(uint8_float16, unsigned char, Half)
GATHER(int8_float16, signed char, Half)
GATHER(int16_float16, short, Half)
GATHER(uint16_float16, unsigned short, Half)
GATHER(float16_float16, Half, Half)
GATHER(float32_float16, float, Half)
GATHER(uint8_uint8, unsigned char, unsigned char)
GATHER(int8_int8, signed char, signed char)
GATHER(int32_int32, int, int)

MARK(uint8, unsigned char, int)
MARK(int8, signed char, int)
MARK(int16, short, int)
MARK(uint16, unsigned short, int)
MARK(int32, int, int)
MARK(float16, Half, float)
MARK(float32, float, float)

// ---- what the network answers ----------------------------------------------------------------

// One voxel's outputs for all classes, `step` apart.
template <class Out>
struct Answer {
  const Out* first;
  Count step;
  int classes;

  __device__ __forceinline__ float raw(int c) const { return number(first[c * step]); }

  __device__ __forceinline__ bool sound() const {
    bool good = true;
    for (int c = 0; c < classes; ++c) good = good && finite(raw(c));
    return good;
  }

  __device__ __forceinline__ float highest() const {
    float top = raw(0);
    for (int c = 1; c < classes; ++c) top = raw(c) > top ? raw(c) : top;
    return top;
  }

  __device__ __forceinline__ float total(float top) const {
    float sum = 0.0f;
    for (int c = 0; c < classes; ++c) sum = __fadd_rn(sum, expf(__fadd_rn(raw(c), -top)));
    return sum;
  }

  // A class's probability. activation 0: none, 1: sigmoid, 2: softmax with the highest output and
  // the sum of powers that were found above.
  __device__ __forceinline__ float probability(int c, int activation, float top,
                                               float sum) const {
    if (activation == 0) return raw(c);
    if (activation == 1) return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-raw(c))));
    return __fdiv_rn(expf(__fadd_rn(raw(c), -top)), sum);
  }
};

// The answer for voxel `inner` of a block; `last`: the classes are the tensor's last axis.
template <class Out>
__device__ __forceinline__ Answer<Out> answer(const Out* output, int block, int classes,
                                              Count size, Count inner, int last) {
  Answer<Out> found;
  found.first = output + block * (classes * size) + (last ? inner * classes : inner);
  found.step = last ? 1 : size;
  found.classes = classes;
  return found;
}

// Adds the probabilities of `count` blocks that were seen turned round to `mean`, (n, c, k, j, i),
// as they lie in the volume. The first of the turns writes, the last divides by their number.
template <class Out>
__device__ void turn(const Out* output, float* mean, int* broken, const Frame* frame, int count,
                     int classes, int activation, int last, int flips, int number, int of) {
  const int rows = frame->block[1], columns = frame->block[2];
  const Count size = (Count)frame->block[0] * rows * columns;
  for (Count n = self(); n < count * size; n += all()) {
    Count rest = n;
    const int i = digit(rest, columns);
    const int j = digit(rest, rows);
    const int k = digit(rest, frame->block[0]);
    const int block = (int)rest;
    const Count inner =
        ((Count)turned(k, frame->block[0], flips, 0) * rows + turned(j, rows, flips, 1)) *
            columns +
        turned(i, columns, flips, 2);
    const Answer<Out> found = answer(output, block, classes, size, inner, last);
    if (!found.sound()) broken[0] = 1;
    const float top = activation == 2 ? found.highest() : 0.0f;
    const float sum = activation == 2 ? found.total(top) : 0.0f;
    float* home = mean + block * (classes * size) + (n - block * size);
    for (int c = 0; c < classes; ++c) {
      float value = found.probability(c, activation, top, sum);
      if (number > 0) value = __fadd_rn(home[c * size], value);
      home[c * size] = number == of - 1 ? __fdiv_rn(value, (float)of) : value;
    }
  }
}

#define TURN(name, Out)                                                                         \
  extern "C" __global__ void turn_##name(const Out* output, float* mean, int* broken,           \
                                         const Frame* frame, int count, int classes,            \
                                         int activation, int last, int flips, int number,       \
                                         int of) {                                              \
    turn<Out>(output, mean, broken, frame, count, classes, activation, last, flips, number,     \
              of);                                                                              \
  }

TURN(float32, float)
TURN(float16, Half)

// ---- the sum ---------------------------------------------------------------------------------

// A voxel in filled coordinates.
struct Voxel {
  int k, j, i;
};

// Voxel number n of the box that begins at (k, j, i) and is (any, rows, columns) long.
__device__ __forceinline__ Voxel voxel(Count n, int k, int j, int i, int rows, int columns) {
  Voxel found;
  found.i = i + digit(n, columns);
  found.j = j + digit(n, rows);
  found.k = k + (int)n;
  return found;
}

__device__ __forceinline__ bool inside(const Frame* frame, const Place* place, Voxel at) {
  const int k = at.k - place->origin[0], j = at.j - place->origin[1], i = at.i - place->origin[2];
  return k >= 0 && j >= 0 && i >= 0 && k < frame->block[0] && j < frame->block[1] &&
         i < frame->block[2];
}

// The number of a voxel in its block.
__device__ __forceinline__ Count inner(const Frame* frame, const Place* place, Voxel at) {
  const Count row = (Count)(at.k - place->origin[0]) * frame->block[1] + at.j - place->origin[1];
  return row * frame->block[2] + at.i - place->origin[2];
}

// The importance of a block's voxel, with the operations of Tiling.weight in their order.
__device__ __forceinline__ float weight(Weights weights, const Frame* frame, const Place* place,
                                        Voxel at) {
  if (weights.raised) {
    const Count row = (Count)at.k * frame->filled[1] + at.j;
    return __fdiv_rn(weights.raised[inner(frame, place, at)],
                     weights.total[row * frame->filled[2] + at.i]);
  }
  const float* lines = weights.lines;
  const float rows = __fmul_rn(lines[place->line[0] + at.k - place->origin[0]],
                               lines[place->line[1] + at.j - place->origin[1]]);
  return __fmul_rn(rows, lines[place->line[2] + at.i - place->origin[2]]);
}

// What all blocks give a filled voxel where a block's voxels weigh `raised`: added in the blocks'
// order. `starts` are the first voxels of the blocks along k, then j, then i.
extern "C" __global__ void weigh(const float* raised, float* total, const Frame* frame,
                                 const int* starts, int ks, int js, int is) {
  const int rows = frame->filled[1], columns = frame->filled[2];
  const Count voxels = (Count)frame->filled[0] * rows * columns;
  for (Count n = self(); n < voxels; n += all()) {
    const Voxel at = voxel(n, 0, 0, 0, rows, columns);
    float sum = 0.0f;
    for (int a = 0; a < ks; ++a) {
      const int k = at.k - starts[a];
      if (k < 0 || k >= frame->block[0]) continue;
      for (int b = 0; b < js; ++b) {
        const int j = at.j - starts[ks + b];
        if (j < 0 || j >= frame->block[1]) continue;
        for (int c = 0; c < is; ++c) {
          const int i = at.i - starts[ks + js + c];
          if (i < 0 || i >= frame->block[2]) continue;
          sum = __fadd_rn(sum, raised[((Count)k * frame->block[1] + j) * frame->block[2] + i]);
        }
      }
    }
    total[n] = sum;
  }
}

// Where the sum of class 0 for a voxel stands, or -1 for a voxel that was filled in.
__device__ __forceinline__ Count spot(const Frame* frame, Voxel at, int height) {
  const int k = at.k - frame->before[0], j = at.j - frame->before[1], i = at.i - frame->before[2];
  if (k < 0 || j < 0 || i < 0 || k >= frame->size[0] || j >= frame->size[1] ||
      i >= frame->size[2])
    return -1;
  return ((Count)(k % height) * frame->size[1] + j) * frame->size[2] + i;
}

// Adds `count` blocks from number `first` on, which stand in the output from number `offset` on and
// share their origin's k. The box (j, i, rows, columns) holds them all. broken[0] becomes 1 where
// an output is not finite.
template <class Out>
__device__ void blend(const Out* output, float* sum, int* broken, Weights weights,
                      const Frame* frame, const Place* places, int first, int count, int offset,
                      int classes, int activation, int last, int height, int j, int i, int rows,
                      int columns) {
  const Count size = (Count)frame->block[0] * frame->block[1] * frame->block[2];
  const Count slab = (Count)height * frame->size[1] * frame->size[2];
  const Count total = (Count)frame->block[0] * rows * columns;
  for (Count n = self(); n < total; n += all()) {
    const Voxel at = voxel(n, places[first].origin[0], j, i, rows, columns);
    const Count home = spot(frame, at, height);
    for (int b = 0; b < count; ++b) {
      const Place* place = places + first + b;
      if (!inside(frame, place, at)) continue;
      const Answer<Out> found =
          answer(output, offset + b, classes, size, inner(frame, place, at), last);
      if (!found.sound()) broken[0] = 1;
      if (home < 0) continue;
      const float importance = weight(weights, frame, place, at);
      const float top = activation == 2 ? found.highest() : 0.0f;
      const float powers = activation == 2 ? found.total(top) : 0.0f;
      for (int c = 0; c < classes; ++c) {
        const float value = found.probability(c, activation, top, powers);
        float* cell = sum + home + c * slab;
        *cell = __fadd_rn(*cell, __fmul_rn(value, importance));
      }
    }
  }
}

#define BLEND(name, Out)                                                                          \
  extern "C" __global__ void blend_##name(                                                        \
      const Out* output, float* sum, int* broken, const float* lines, const float* raised,        \
      const float* whole, const Frame* frame, const Place* places, int first, int count,          \
      int offset, int classes, int activation, int last, int height, int j, int i, int rows,      \
      int columns) {                                                                              \
    const Weights weights = {lines, raised, whole};                                               \
    blend<Out>(output, sum, broken, weights, frame, places, first, count, offset, classes,        \
               activation, last, height, j, i, rows, columns);                                    \
  }

BLEND(float32, float)
BLEND(float16, Half)

// Adds `count` blocks of air from number `first` on: class 0 with probability 1. The box holds them
// all; its slices are those that are about to be read.
extern "C" __global__ void blend_air(float* sum, const float* lines, const float* raised,
                                     const float* whole, const Frame* frame, const Place* places,
                                     int first, int count, int height, int k, int j, int i,
                                     int slices, int rows, int columns) {
  const Weights weights = {lines, raised, whole};
  const Count total = (Count)slices * rows * columns;
  for (Count n = self(); n < total; n += all()) {
    const Voxel at = voxel(n, k, j, i, rows, columns);
    const Count home = spot(frame, at, height);
    if (home < 0) continue;
    for (int b = first; b < first + count; ++b)
      if (inside(frame, places + b, at))
        sum[home] = __fadd_rn(sum[home], weight(weights, frame, places + b, at));
  }
}

// ---- what is read ----------------------------------------------------------------------------

// 0 into `slices` slices from z on: the place of slices that were read becomes that of later ones.
extern "C" __global__ void clear(float* sum, const Frame* frame, int classes, int height, int z,
                                 int slices) {
  const int plane = frame->size[1] * frame->size[2];
  const Count total = (Count)classes * slices * plane;
  for (Count n = self(); n < total; n += all()) {
    Count rest = n;
    const int voxel = digit(rest, plane);
    const int slice = digit(rest, slices);
    sum[(rest * height + (z + slice) % height) * plane + voxel] = 0.0f;
  }
}

// Probabilities in place of what was blended raw, in `slices` slices from z on.
extern "C" __global__ void activate(float* sum, const Frame* frame, int classes, int activation,
                                    int height, int z, int slices) {
  const int plane = frame->size[1] * frame->size[2];
  const Count slab = (Count)height * plane;
  const Count total = (Count)slices * plane;
  for (Count n = self(); n < total; n += all()) {
    Count rest = n;
    const int voxel = digit(rest, plane);
    float* home = sum + (Count)((z + (int)rest) % height) * plane + voxel;
    const Answer<float> found = {home, slab, classes};
    const float top = activation == 2 ? found.highest() : 0.0f;
    const float powers = activation == 2 ? found.total(top) : 0.0f;
    for (int c = 0; c < classes; ++c)
      home[c * slab] = found.probability(c, activation, top, powers);
  }
}

// Labels of `slices` slices from z on. Without `values` the most probable class gives its label;
// with them, the most probable of those classes that reach their value and whose label is not 0,
// else label 0. Of equal ones the first. `certainty`, if it is wanted, gets the probability behind
// the label: 0 where no class reached its value.
extern "C" __global__ void label(const float* sum, unsigned char* labels, float* certainty,
                                 const unsigned char* table, const float* values,
                                 const Frame* frame, int classes, int height, int z, int slices) {
  const int plane = frame->size[1] * frame->size[2];
  const Count slab = (Count)height * plane;
  const Count total = (Count)slices * plane;
  for (Count n = self(); n < total; n += all()) {
    Count rest = n;
    const int voxel = digit(rest, plane);
    const float* here = sum + (Count)((z + (int)rest) % height) * plane + voxel;
    int best = values ? -1 : 0;
    for (int c = values ? 0 : 1; c < classes; ++c) {
      const float probability = here[c * slab];
      const bool may = !values || (probability >= values[c] && table[c] > 0);
      if (may && (best < 0 || probability > here[best * slab])) best = c;
    }
    labels[n] = best < 0 ? 0 : table[best];
    if (certainty) certainty[n] = best < 0 ? 0.0f : here[best * slab];
  }
}
