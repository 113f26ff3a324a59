#include "dispatch/stream.h"

#include "dispatch/buffer.h"
#include "dispatch/float_env.h"
#include "dispatch/registry.h"

namespace rnnfast {
namespace {

// The packed weights of all layers, and the functions that read them.
template <class T>
struct Stack {
    struct Layer {
        Sizes sizes;
        ptrdiff_t size;  // of `packed`
        Buffer<T> packed;
    };

    const CellKernels<T>& kernels;
    const Format* const format;
    std::vector<Layer> layers;
    double work;  // the cost of a step of one row, in multiplications of its dtype

    Stack(const StreamConfig& config, const Weights<const T>* weights)
        : kernels(active_kernels_for<T>().cells[int(config.cell)]),
          format(config.format ? &active_format(*config.format) : nullptr),
          work(0) {
        const FloatEnv env;  // packing adds biases
        Sizes s = config.sizes;
        for (ptrdiff_t l = 0; l < config.layers; ++l, s.input = s.width()) {
            const ptrdiff_t size = kernels.packed_size(s, format);
            layers.push_back({s, size, allocate<T>(size)});
            kernels.pack(s, format, weights[l], layers.back().packed.get());
            const double rows = double(kernels.gates) * double(s.hidden);
            work += rows * double(s.input + s.width()) + double(s.hidden) * double(s.projection);
        }
        if (format) work /= double(format->row_speed);
    }
};

template <class T>
class StreamOf final : public Stream {
public:
    StreamOf(ptrdiff_t batch, std::shared_ptr<const Stack<T>> weights)
        : weights_(std::move(weights)),
          kernels_(weights_->kernels.stream),
          plan_{1, batch, false, nullptr, nullptr, nullptr} {
        layers_.reserve(weights_->layers.size());
        for (const auto& [sizes, size, packed] : weights_->layers) {
            Layer& layer = layers_.emplace_back();
            ForwardArgs<T>& args = layer.args;
            args.sizes = sizes, args.packed = packed.get(), args.format = weights_->format;
            args.x_row = sizes.input, args.x_step = batch * sizes.input;
            args.y_row = sizes.width(), args.y_step = batch * sizes.width();
            if (layers_.size() > 1) {
                layer.between = allocate<T>(args.x_step);
                args.x = layers_[layers_.size() - 2].args.y = layer.between.get();
            }
            layer.scratch = allocate<T>(kernels_.scratch(args, plan_));
            layer.pass = allocate<unsigned char>(kernels_.bytes);
            kernels_.make(layer.pass.get(), args, plan_, layer.scratch.get());
            kernels_.set_state(layer.pass.get());
        }
    }

    std::unique_ptr<Stream> clone() const override {
        std::vector<T> h(layers_.size() * size_t(h_count())), c(layers_.size() * size_t(c_count()));
        get_state(h.data(), c.data());
        auto other = std::make_unique<StreamOf>(plan_.batch, weights_);
        other->set_state(h.data(), c.data());
        return other;
    }

    void run(ptrdiff_t steps, const void* x, void* y) noexcept override {
        const FloatEnv env;
        const FormatScope format(plan_.batch > 1 ? weights_->format
                                                 : nullptr);  // products of one row use no tiles
        ForwardArgs<T>& bottom = layers_.front().args;
        ForwardArgs<T>& top = layers_.back().args;
        bottom.x = static_cast<const T*>(x);
        top.y = static_cast<T*>(y);
        for (ptrdiff_t t = 0; t < steps; ++t) {
            for (const Layer& layer : layers_) kernels_.step(layer.pass.get());
            bottom.x += bottom.x_step;
            top.y += top.y_step;
        }
    }

    void get_state(void* h, void* c) const noexcept override {
        T *to_h = static_cast<T*>(h), *to_c = static_cast<T*>(c);
        for (const Layer& layer : layers_) {
            layer.args.hn = to_h, layer.args.cn = to_c;
            kernels_.get_state(layer.pass.get());
            to_h += h_count();
            if (to_c) to_c += c_count();
        }
    }

    void set_state(const void* h, const void* c) noexcept override {
        const T *from_h = static_cast<const T*>(h), *from_c = static_cast<const T*>(c);
        for (Layer& layer : layers_) {
            layer.args.h0 = from_h, layer.args.c0 = from_c;
            kernels_.set_state(layer.pass.get());
            if (from_h) from_h += h_count();
            if (from_c) from_c += c_count();
        }
    }

    void reset(const uint8_t* rows) noexcept override {
        if (!rows) return set_state(nullptr, nullptr);
        for (Layer& layer : layers_) {
            layer.args.reset = rows;
            kernels_.reset(layer.pass.get());
            layer.args.reset = nullptr;
        }
    }

    double work() const noexcept override { return weights_->work * double(plan_.batch); }

    size_t weights_bytes() const noexcept override {
        size_t sum = 0;
        for (const auto& layer : weights_->layers) sum += size_t(layer.size) * sizeof(T);
        return sum;
    }

private:
    struct Layer {
        mutable ForwardArgs<T> args{};  // read by the pass; `get_state` sets where it writes
        Buffer<T> between, scratch;     // x, the y of the layer below; the scratch of the pass
        Buffer<unsigned char> pass;
    };

    // The elements of a layer's h and c.
    ptrdiff_t h_count() const { return plan_.batch * weights_->layers.front().sizes.width(); }
    ptrdiff_t c_count() const { return plan_.batch * weights_->layers.front().sizes.hidden; }

    const std::shared_ptr<const Stack<T>> weights_;
    const StreamKernels<T>& kernels_;
    const Plan plan_;
    std::vector<Layer> layers_;  // must not move: the passes point to them
};

}  // namespace

template <class T>
std::unique_ptr<Stream> make_stream(const StreamConfig& config, const Weights<const T>* weights) {
    return std::make_unique<StreamOf<T>>(config.batch,
                                         std::make_shared<const Stack<T>>(config, weights));
}

#define DTYPE(name, type) \
    template std::unique_ptr<Stream> make_stream(const StreamConfig&, const Weights<const type>*);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
