#include "api/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>

namespace rnnfast {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeader = 100'000'000;  // as in the format's own library
constexpr size_t kMaxAxes = 64;              // as in NumPy
constexpr size_t kMaxDigits = 18;            // of an integer; 18 digits fit an int64_t
constexpr size_t kMaxMetadata = 64;          // keys; a layer has several times fewer options

struct Dtype {
    const char* name;
    int64_t bytes;
    std::string tag() const { return "F" + std::to_string(8 * bytes); }  // its name in the file
};
constexpr Dtype kDtypes[] = {
#define DTYPE(name, type) {#name, int64_t(sizeof(type))},
#include "core/dtypes.inc"
#undef DTYPE
};

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument(text); }

std::string quoted(const std::string& text) {
    std::string out = text.substr(0, 32);
    for (char& c : out)
        if (c < ' ' || c > '~') c = '?';
    return "'" + out + "'";
}

// Returns the number of bytes after the header's length, and moves to the first of them.
int64_t rest_of(std::FILE* file) {
#if defined(_WIN32)
    const int64_t size = _fseeki64(file, 0, SEEK_END) ? -1 : _ftelli64(file);
#else
    const int64_t size = fseeko(file, 0, SEEK_END) ? -1 : int64_t(ftello(file));
#endif
    if (size < 0 || std::fseek(file, kLengthBytes, SEEK_SET)) fail(std::strerror(errno));
    if (size < kLengthBytes) fail("file: expected a size, got none");  // e.g. of a device
    return size - kLengthBytes;
}

// A position in the text of a header. Each method reads the item that must come next, and moves past it.
class Header {
public:
    explicit Header(std::string text) : text_(std::move(text)) {
        if (next() != '{' || at_) fail_here("'{'");
    }

    // Reads an object. Calls `value` with each key, to read the key's value.
    template <class Value>
    void object(const Value& value) {
        expect('{');
        if (take('}')) return;
        std::set<std::string> seen;
        do {
            const std::string key = string();
            if (!seen.insert(key).second)
                fail("header: expected each key once in an object, got " + quoted(key) + " twice");
            expect(':');
            value(key);
        } while (take(','));
        expect('}');
    }

    // Reads a string of printable ASCII. All names and strings that this library needs are such strings.
    std::string string() {
        if (next() != '"') fail_here("a string");
        std::string value;
        for (++at_; next_byte() != '"'; ++at_) {
            const size_t begin = at_;
            const int byte = next_byte() == '\\' ? escaped() : next_byte();
            if (byte < ' ' || byte > '~') {
                at_ = begin;
                fail_here("a string of printable ASCII");
            }
            value += char(byte);
        }
        ++at_;
        return value;
    }

    std::vector<int64_t> integers(size_t most) {
        std::vector<int64_t> values;
        expect('[');
        if (take(']')) return values;
        do {
            if (values.size() == most) fail_here("at most " + std::to_string(most) + " integers");
            values.push_back(integer());
        } while (take(','));
        expect(']');
        return values;
    }

    void end() {
        if (next() != kEnd) fail_here("its end");
    }

private:
    static constexpr int kEnd = -1;

    [[noreturn]] void fail_here(const std::string& expected) const {
        const std::string got = at_ < text_.size() ? quoted(text_.substr(at_, 16)) : "its end";
        fail("header: expected " + expected + " at byte " + std::to_string(at_) + ", got " + got);
    }

    int next_byte() const {
        return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : kEnd;
    }

    // Moves past spaces, and returns the next byte.
    int next() {
        while (at_ < text_.size() && std::strchr(" \t\n\r", text_[at_]) && text_[at_]) ++at_;
        return next_byte();
    }

    bool take(char c) {
        if (next() != c) return false;
        ++at_;
        return true;
    }

    void expect(char c) {
        if (!take(c)) fail_here(std::string("'") + c + "'");
    }

    // Reads an escape sequence. Moves from its backslash to its last character.
    int escaped() {
        static constexpr char kNames[] = "\"\\/bfnrt", kChars[] = "\"\\/\b\f\n\r\t";
        ++at_;
        if (next_byte() == 'u') {
            const std::string digits = text_.substr(at_ + 1, 4);
            if (digits.size() == 4 && digits[0] == '0' && digits[1] == '0' &&
                digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos) {
                at_ += 4;
                return std::stoi(digits, nullptr, 16);
            }
        } else if (next_byte() > 0) {
            const char* const found = std::strchr(kNames, next_byte());
            if (found) return kChars[found - kNames];
        }
        fail_here("an escaped character");
    }

    int64_t integer() {
        next();
        const size_t begin = at_;
        int64_t value = 0;
        while (at_ - begin < kMaxDigits && next_byte() >= '0' && next_byte() <= '9')
            value = 10 * value + (text_[at_++] - '0');
        const bool whole = next_byte() == ',' || next_byte() == ']' || next_byte() <= ' ';
        if (at_ == begin || !whole || (text_[begin] == '0' && at_ > begin + 1)) {
            at_ = begin;
            fail_here("an integer of 0 or more and at most 18 digits");
        }
        return value;
    }

    std::string text_;
    size_t at_ = 0;
};

Tensor read_tensor(Header& header, const std::string& name) {
    std::string tag;
    std::vector<int64_t> shape, offsets;
    bool shaped = false;
    header.object([&](const std::string& key) {
        if (key == "dtype")
            tag = header.string();
        else if (key == "shape")
            shape = header.integers(kMaxAxes), shaped = true;
        else if (key == "data_offsets")
            offsets = header.integers(2);
        else
            fail(quoted(name) + ": expected dtype, shape and data_offsets, got " + quoted(key));
    });
    if (!shaped || offsets.size() != 2)
        fail(quoted(name) + ": expected a shape and two data_offsets, got fewer");
    const Dtype* const dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                            [&](const Dtype& d) { return d.tag() == tag; });
    if (dtype == std::end(kDtypes))
        fail(quoted(name) + ": dtype: expected one that rnnfast computes in, got " + quoted(tag));
    int64_t size = dtype->bytes;
    for (const int64_t n : shape) {
        if (n && size > std::numeric_limits<int64_t>::max() / n)
            fail(quoted(name) + ": expected a shape that fits in memory, got a larger one");
        size *= n;
    }
    if (offsets[1] - offsets[0] != size)
        fail(quoted(name) + ": expected " + std::to_string(size) + " bytes, got data_offsets " +
             std::to_string(offsets[0]) + ", " + std::to_string(offsets[1]));
    return {dtype->name, std::move(shape), offsets[0], offsets[1]};
}

}  // namespace

Safetensors::Safetensors(const char* path) : file_(std::fopen(path, "rb"), std::fclose) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    fail("expected a little-endian processor, as the file's arrays are, got another");
#endif
    if (!file_) fail(std::strerror(errno));
    unsigned char raw[kLengthBytes];
    read_exactly(raw, sizeof raw);  // fails for a folder, though it has a size
    uint64_t length = 0;
    for (int i = 0; i < kLengthBytes; ++i) length |= uint64_t(raw[i]) << 8 * i;
    const int64_t rest = rest_of(file_.get()), most = std::min(rest, kMaxHeader);
    if (length > uint64_t(most))
        fail("header: expected at most " + std::to_string(most) + " bytes, got a length of " +
             std::to_string(length));
    std::string text(size_t(length), ' ');
    read_exactly(&text[0], text.size());
    bytes = rest - int64_t(length);

    Header header(std::move(text));
    header.object([&](const std::string& name) {
        if (name == "__metadata__")
            header.object([&](const std::string& key) {
                if (metadata.size() == kMaxMetadata)
                    fail("metadata: expected at most " + std::to_string(kMaxMetadata) +
                         " strings, got more");
                metadata[key] = header.string();
            });
        else
            tensors.emplace(name, read_tensor(header, name));
    });
    header.end();
    check_places();
}

std::unique_ptr<unsigned char[]> Safetensors::read() {
    // `new` aligns an array of unsigned char for elements of any type.
    std::unique_ptr<unsigned char[]> data(new unsigned char[size_t(bytes)]);
    read_exactly(data.get(), size_t(bytes));
    return data;
}

void Safetensors::read_exactly(void* to, size_t length) {
    const size_t got = std::fread(to, 1, length, file_.get());
    if (got == length) return;
    if (std::ferror(file_.get())) fail(std::strerror(errno));
    fail("file: expected " + std::to_string(length) + " more bytes, got " + std::to_string(got));
}

// Checks that the arrays fill the data, one after the other.
void Safetensors::check_places() {
    std::vector<std::pair<int64_t, int64_t>> places;
    for (const auto& item : tensors) places.emplace_back(item.second.begin, item.second.end);
    std::sort(places.begin(), places.end());
    int64_t at = 0;
    for (const auto& place : places) {
        if (place.first != at)
            fail("file: expected an array that begins at byte " + std::to_string(at) +
                 " of the data, got one at " + std::to_string(place.first));
        at = place.second;
    }
    if (at != bytes)
        fail("file: expected " + std::to_string(at) + " bytes of data, got " +
             std::to_string(bytes));
}

}  // namespace rnnfast
