/* Runs a WAV file through a small LSTM, sample by sample, as an audio effect would in real time.
 *
 *     wav_lstm [IN.wav [OUT.wav]]
 *
 * IN.wav is 16-bit PCM, mono or stereo. Without it, the program makes 10 s of plucked strings. Each
 * channel is a row of the batch, so a frame of the file is the x of a step. The network is an LSTM
 * of 16 units and a linear layer, whose output is added to the input, as in models of guitar
 * amplifiers. Its weights are random, from a fixed seed: it distorts, but imitates no amplifier.
 *
 * It prints the real-time factor: how many seconds of sound it filters in a second. */
#include <rnnfast.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HIDDEN = 16, GATES = 4, MAX_CHANNELS = 2 };

/* ---- Sound ---------------------------------------------------------------------------------- */

typedef struct {
    unsigned channels, rate;
    size_t frames;
    float* samples; /* (frames, channels), in -1..1 */
} Sound;

static void fail(const char* what, const char* why) {
    fprintf(stderr, "wav_lstm: %s: %s\n", what, why);
    exit(1);
}

static float* new_samples(size_t count) {
    float* samples = calloc(count + 1, sizeof *samples); /* + 1: for an empty file, too */
    if (!samples) fail("samples", "not enough memory");
    return samples;
}

static unsigned long little_endian(const unsigned char* bytes, int count) {
    unsigned long value = 0;
    while (count-- > 0) value = value << 8 | bytes[count];
    return value;
}

static void to_little_endian(unsigned char* bytes, unsigned long value, int count) {
    for (int i = 0; i < count; ++i) bytes[i] = (unsigned char)(value >> 8 * i & 0xff);
}

static Sound read_wav(const char* path) {
    FILE* file = fopen(path, "rb");
    unsigned char header[12], chunk[8], format[16];
    Sound sound = {0, 0, 0, NULL};
    if (!file) fail(path, "cannot be opened");
    if (fread(header, 1, 12, file) != 12 || memcmp(header, "RIFF", 4) ||
        memcmp(header + 8, "WAVE", 4))
        fail(path, "expected a RIFF WAVE file");
    while (fread(chunk, 1, 8, file) == 8) {
        const unsigned long size = little_endian(chunk + 4, 4);
        if (!memcmp(chunk, "fmt ", 4) && size >= 16) {
            if (fread(format, 1, 16, file) != 16) fail(path, "its format is cut off");
            sound.channels = (unsigned)little_endian(format + 2, 2);
            sound.rate = (unsigned)little_endian(format + 4, 4);
            if (little_endian(format, 2) != 1 || little_endian(format + 14, 2) != 16 ||
                !sound.channels || sound.channels > MAX_CHANNELS || !sound.rate)
                fail(path, "expected 16-bit PCM, mono or stereo");
            fseek(file, (long)(size - 16 + size % 2), SEEK_CUR);
        } else if (!memcmp(chunk, "data", 4)) {
            unsigned char bytes[2];
            if (!sound.channels) fail(path, "expected its format before its samples");
            sound.frames = size / 2 / sound.channels;
            sound.samples = new_samples(sound.frames * sound.channels);
            for (size_t i = 0; i < sound.frames * sound.channels; ++i) {
                long value;
                if (fread(bytes, 1, 2, file) != 2) fail(path, "its samples are cut off");
                value = (long)little_endian(bytes, 2);
                sound.samples[i] = (float)(value < 0x8000 ? value : value - 0x10000) / 32768;
            }
            fclose(file);
            return sound;
        } else {
            fseek(file, (long)(size + size % 2), SEEK_CUR);
        }
    }
    fail(path, "has no samples");
    return sound;
}

static void write_wav(const char* path, const Sound* sound) {
    const unsigned long bytes = (unsigned long)(sound->frames * sound->channels * 2);
    unsigned char header[44] = "RIFF....WAVEfmt ";
    FILE* file = fopen(path, "wb");
    if (!file) fail(path, "cannot be written");
    to_little_endian(header + 4, 36 + bytes, 4);
    to_little_endian(header + 16, 16, 4);
    to_little_endian(header + 20, 1, 2);
    to_little_endian(header + 22, sound->channels, 2);
    to_little_endian(header + 24, sound->rate, 4);
    to_little_endian(header + 28, sound->rate * sound->channels * 2, 4);
    to_little_endian(header + 32, sound->channels * 2, 2);
    to_little_endian(header + 34, 16, 2);
    memcpy(header + 36, "data", 4);
    to_little_endian(header + 40, bytes, 4);
    fwrite(header, 1, sizeof header, file);
    for (size_t i = 0; i < sound->frames * sound->channels; ++i) {
        const float value = fmaxf(-1, fminf(1, sound->samples[i]));
        unsigned char sample[2];
        to_little_endian(sample, (unsigned long)lrintf(32767 * value) & 0xffff, 2);
        fwrite(sample, 1, 2, file);
    }
    if (ferror(file) | fclose(file)) fail(path, "cannot be written");
}

/* A uniform number in -1..1, by xorshift (Marsaglia 2003), so that all systems give the same. */
static float draw(uint32_t* seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return (float)(*seed / 2147483648.0 - 1);
}

/* Two plucked strings, one for each channel, by the algorithm of Karplus & Strong 1983: noise that
 * repeats with a period, and is averaged each time. */
static Sound pluck(void) {
    const size_t period[MAX_CHANNELS] = {401, 301}; /* samples; 110 and 147 Hz */
    Sound sound = {MAX_CHANNELS, 44100, 441000, NULL};
    uint32_t seed = 1;
    sound.samples = new_samples(sound.frames * MAX_CHANNELS);
    for (size_t t = 0; t < sound.frames; ++t)
        for (size_t c = 0; c < MAX_CHANNELS; ++c) {
            float* const now = sound.samples + t * MAX_CHANNELS + c;
            const float* const before = now - period[c] * MAX_CHANNELS;
            if (t % sound.rate <= period[c]) /* a new pluck each second */
                *now = draw(&seed) / 2;
            else
                *now = 0.498f * (before[0] + before[-MAX_CHANNELS]);
        }
    return sound;
}

/* ---- The network ---------------------------------------------------------------------------- */

typedef struct {
    float weight_ih[GATES * HIDDEN * 1], weight_hh[GATES * HIDDEN * HIDDEN];
    float bias_ih[GATES * HIDDEN], bias_hh[GATES * HIDDEN];
    float linear[HIDDEN];
} Network;

static void fill(float* array, size_t count, float scale, uint32_t* seed) {
    for (size_t i = 0; i < count; ++i) array[i] = scale * draw(seed);
}

static void draw_network(Network* network) {
    uint32_t seed = 2;
    fill(network->weight_ih, GATES * HIDDEN, 2, &seed);
    fill(network->weight_hh, GATES * HIDDEN * HIDDEN, 0.25f, &seed);
    fill(network->bias_ih, GATES * HIDDEN, 0.25f, &seed);
    fill(network->bias_hh, GATES * HIDDEN, 0.25f, &seed);
    fill(network->linear, HIDDEN, 0.25f, &seed);
}

static rnnfast_stream* open_stream(const Network* network, unsigned channels) {
    const rnnfast_config config = {
        .cell = "lstm",
        .dtype = "float32",
        .input_size = 1,
        .hidden_size = HIDDEN,
        .num_layers = 1,
        .batch_size = channels,
    };
    const rnnfast_layer layer = {
        .weight_ih = network->weight_ih,
        .weight_hh = network->weight_hh,
        .bias_ih = network->bias_ih,
        .bias_hh = network->bias_hh,
    };
    rnnfast_stream* const stream = rnnfast_create(&config, &layer);
    if (!stream) fail("rnnfast", rnnfast_error());
    return stream;
}

/* The work of a real-time thread for each frame: it filters the channels of `frame` in place. */
static void filter(rnnfast_stream* stream, const Network* network, unsigned channels,
                   float* frame) {
    float h[MAX_CHANNELS * HIDDEN];
    rnnfast_step(stream, frame, h);
    for (unsigned c = 0; c < channels; ++c)
        for (int k = 0; k < HIDDEN; ++k) frame[c] += network->linear[k] * h[c * HIDDEN + k];
}

int main(int argc, char** argv) {
    Sound sound = argc > 1 ? read_wav(argv[1]) : pluck();
    static Network network;
    rnnfast_stream* stream;
    clock_t start;
    double took, lasts;
    draw_network(&network);
    stream = open_stream(&network, sound.channels);

    start = clock();
    for (size_t t = 0; t < sound.frames; ++t)
        filter(stream, &network, sound.channels, sound.samples + t * sound.channels);
    took = (double)(clock() - start) / CLOCKS_PER_SEC;

    lasts = (double)sound.frames / sound.rate;
    printf("%.2f s of %u channel(s) at %u Hz, an LSTM of %d units on %s: %.3f s of CPU time\n",
           lasts, sound.channels, sound.rate, HIDDEN, rnnfast_isa(), took);
    if (took > 0)
        printf("real-time factor %.1f, %.3f us a sample\n", lasts / took,
               1e6 * took / (double)sound.frames);
    if (argc > 2) write_wav(argv[2], &sound);
    rnnfast_destroy(stream);
    free(sound.samples);
    return 0;
}
