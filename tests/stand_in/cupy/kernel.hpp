// What the body of an ElementwiseKernel finds around it: the names of CUDA that it may use, arrays that check their
// indices, and iterations in a scrambled order. Without containers of C++, whose headers take most of the time of a
// compilation.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

template <class A, class B> inline auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
template <class A, class B> inline auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }

namespace stand_in {

// CuPy's complex<double>, which kernels only move.
struct Complex {
    double real, imag;
    Complex(double real = 0, double imag = 0) : real(real), imag(imag) {}
    bool operator==(const Complex& other) const { return real == other.real && imag == other.imag; }
    bool operator!=(const Complex& other) const { return !(*this == other); }
};

struct Fault { ptrdiff_t kind, parameter, index; };
enum { OUTSIDE = 1, COLLISION = 2, MISALIGNED = 3 };

// Where number k of an array lies, counted in C order.
inline char* place(void* data, ptrdiff_t k, int ndim, const ptrdiff_t* shape, const ptrdiff_t* strides) {
    char* found = static_cast<char*>(data);
    for (int axis = ndim - 1; axis > 0; axis--) {
        found += k % shape[axis] * strides[axis];
        k /= shape[axis];
    }
    return ndim ? found + k * strides[0] : found;
}

// An array that the body indexes by itself ("raw"). What an iteration touches of an output is compared with what it
// was before, which tells which numbers the iteration wrote.
template <class T>
class Raw {
    struct Touched { T* place; T before; ptrdiff_t index; };

    void* data_;
    const int parameter_, ndim_;
    const ptrdiff_t *shape_, *strides_;
    ptrdiff_t size_ = 1, count_ = 0, room_ = 0;
    Touched* touched_ = nullptr;    // by the iteration that runs
    ptrdiff_t* writers_ = nullptr;  // 1 + the iteration that wrote each number, 0 for none

    T* at(ptrdiff_t k) const {
        if (k < 0 || k >= size_) throw Fault{OUTSIDE, parameter_, k};
        char* found = place(data_, k, ndim_, shape_, strides_);
        if (reinterpret_cast<uintptr_t>(found) % sizeof(T)) throw Fault{MISALIGNED, parameter_, k};
        return reinterpret_cast<T*>(found);
    }

  public:
    Raw(void* data, int parameter, int ndim, const ptrdiff_t* shape, const ptrdiff_t* strides)
        : data_(data), parameter_(parameter), ndim_(ndim), shape_(shape), strides_(strides) {
        for (int axis = 0; axis < ndim; axis++) size_ *= shape[axis];
    }
    Raw(const Raw&) = delete;
    ~Raw() {
        free(touched_);
        free(writers_);
    }
    ptrdiff_t size() const { return size_; }
    const T& operator[](ptrdiff_t k) const { return *at(k); }
    T& operator[](ptrdiff_t k) {
        T* element = at(k);
        if (count_ == room_) {
            room_ = 2 * room_ + 16;
            touched_ = static_cast<Touched*>(realloc(touched_, room_ * sizeof(Touched)));
        }
        touched_[count_++] = Touched{element, *element, k};
        return *element;
    }
    void finish(ptrdiff_t iteration) {
        if (!writers_) writers_ = static_cast<ptrdiff_t*>(calloc(size_ + 1, sizeof(ptrdiff_t)));
        for (; count_ > 0; count_--) {
            const Touched& t = touched_[count_ - 1];
            const bool both_nan = *t.place != *t.place && t.before != t.before;
            if (*t.place == t.before || both_nan) continue;
            if (writers_[t.index] && writers_[t.index] != iteration + 1) throw Fault{COLLISION, parameter_, t.index};
            writers_[t.index] = iteration + 1;
        }
    }
};

// The numbers from 0 to size - 1 with neighbours far apart: steps of about the golden section, and without a divisor
// that size has too. Those of large arrays come backwards, which is out of order as well, and easier on a cache.
class Order {
    ptrdiff_t size_, step_, left_;

    static ptrdiff_t divisor(ptrdiff_t a, ptrdiff_t b) { return b ? divisor(b, a % b) : a; }

  public:
    ptrdiff_t now;

    explicit Order(ptrdiff_t size) : size_(size), step_(size > 65536 ? size - 1 : 0.618 * size + 1), left_(size), now(size / 2) {
        while (divisor(step_, size) != 1) step_++;
    }
    bool next() {
        now += step_;
        while (now >= size_) now -= size_;
        return left_-- > 0;
    }
};

}  // namespace stand_in
