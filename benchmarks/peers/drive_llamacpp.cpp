// llama.cpp as a peer (protocol.py says what it answers): drive_llamacpp MODEL.gguf THREADS
//
// A context is as large as the run asks for, each sequence with a buffer of its own, flash attention "auto", ubatch
// 512. Like llama-bench it draws no tokens: the next one is made up, which is in its favour.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr int kEmbedRows = 512;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

class Engine {
  public:
    Engine(const char* path, int threads) {
        llama_backend_init();
        model_ = llama_model_load_from_file(path, llama_model_default_params());
        if (model_ == nullptr) exit(1);
        threads_ = threads;
        vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
        batch_ = llama_batch_init(2048, 0, 1);
    }

    uint64_t weight_bytes() const { return llama_model_size(model_); }

    double decode(int requests, int context, int tokens) {
        if (held_ != std::make_pair(requests, context)) {
            clear(requests, context + tokens + 1);
            for (int r = 0; r < requests; ++r) read(r, random_ids(context), false);
            held_ = {requests, context};
        }
        Clock::time_point begin{};
        for (int step = 0; step <= tokens; ++step) {  // the first one is warm-up: its logits are those of the prompt
            if (step == 1) begin = Clock::now();
            batch_.n_tokens = 0;
            for (int r = 0; r < requests; ++r) add(token(), context + step, r, true);
            run();
            best();
        }
        const double seconds = seconds_since(begin);
        for (int r = 0; r < requests; ++r)
            if (!llama_memory_seq_rm(llama_get_memory(context_), r, context, -1)) held_ = {0, 0};  // of a state
        return static_cast<double>(tokens) * requests / seconds;
    }

    double prefill(int tokens) {
        const std::vector<llama_token> ids = random_ids(tokens);
        clear(1, tokens);
        const auto begin = Clock::now();  // the context is there, as the other engines' is
        read(0, ids, true);
        best();
        return tokens / seconds_since(begin);
    }

    // Batches of at most a ubatch, which is quicker here than a mask over all texts at once.
    double embed(int texts, int tokens) {
        const int together = std::max(1, kEmbedRows / tokens);
        clear(together, tokens, true);
        const auto begin = Clock::now();
        for (int at = 0; at < texts; at += together) {
            if (llama_get_memory(context_) != nullptr) llama_memory_clear(llama_get_memory(context_), false);
            batch_.n_tokens = 0;
            const int here = std::min(together, texts - at);
            for (int r = 0; r < here; ++r)
                for (int i = 0; i < tokens; ++i) add(token(), i, r, true);
            run();
            for (int r = 0; r < here; ++r)
                if (llama_get_embeddings_seq(context_, r) == nullptr) exit(1);
        }
        return texts / seconds_since(begin);
    }

    int logits(const std::vector<llama_token>& ids, const std::string& out) {
        clear(1, static_cast<int>(ids.size()));
        batch_.n_tokens = 0;
        for (std::size_t i = 0; i < ids.size(); ++i) add(ids[i], static_cast<int>(i), 0, true);
        run();
        std::ofstream file(out, std::ios::binary);
        for (std::size_t i = 0; i < ids.size(); ++i)
            file.write(reinterpret_cast<const char*>(llama_get_logits_ith(context_, static_cast<int>(i))),
                       static_cast<std::streamsize>(sizeof(float)) * vocab_);
        return static_cast<int>(ids.size());
    }

  private:
    llama_token token() { return 300 + static_cast<llama_token>(random_() % 19000); }

    std::vector<llama_token> random_ids(int count) {
        std::vector<llama_token> ids(static_cast<std::size_t>(count));
        for (auto& id : ids) id = token();
        return ids;
    }

    // An empty cache for so many sequences of at least so many tokens.
    void clear(int sequences, int tokens, bool embeds = false) {
        held_ = {0, 0};
        const int room = (tokens + 255) / 256 * 256;
        if (context_ != nullptr && room_ == std::make_pair(sequences, room)) {
            if (llama_get_memory(context_) != nullptr) llama_memory_clear(llama_get_memory(context_), false);
            return;
        }
        if (context_ != nullptr) llama_free(context_);
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<uint32_t>(sequences * room);
        params.n_batch = 2048;
        params.n_ubatch = 512;
        params.n_seq_max = static_cast<uint32_t>(sequences);
        params.n_threads = params.n_threads_batch = threads_;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
        params.kv_unified = false;
        params.embeddings = embeds;  // pooled as the file says
        context_ = llama_init_from_model(model_, params);
        if (context_ == nullptr) exit(1);
        room_ = {sequences, room};
    }

    void add(llama_token id, int position, int sequence, bool wants_logits) {
        const int i = batch_.n_tokens++;
        batch_.token[i] = id;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = sequence;
        batch_.logits[i] = wants_logits;
    }

    void read(int sequence, const std::vector<llama_token>& ids, bool wants_logits) {
        for (std::size_t at = 0; at < ids.size();) {
            batch_.n_tokens = 0;
            for (int i = 0; i < 2048 && at < ids.size(); ++i, ++at)
                add(ids[at], static_cast<int>(at), sequence, wants_logits && at + 1 == ids.size());
            run();
        }
    }

    void run() {
        if (llama_decode(context_, batch_) != 0) exit(1);
        llama_synchronize(context_);
    }

    float best() { return llama_get_logits_ith(context_, -1)[0]; }

    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
    llama_batch batch_{};
    int vocab_ = 0, threads_ = 1;
    std::pair<int, int> room_{0, 0};  // sequences and tokens of each that the context holds
    std::pair<int, int> held_{0, 0};  // requests and context whose keys and values are in the cache
    std::mt19937 random_{1};
};

std::vector<llama_token> read_ids(const std::string& path) {
    std::ifstream file(path);
    std::vector<llama_token> ids;
    std::string word;
    while (std::getline(file, word, ','))
        ids.push_back(std::stoi(word.substr(word.find_first_of("0123456789"))));
    return ids;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 64;
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    Engine engine(argv[1], std::stoi(argv[2]));
    std::string name = argv[1];
    name = name.substr(name.find_last_of('/') + 1);
    std::printf("{\"engine\": \"llama.cpp (llama-cpp-python %s)\", \"weights\": \"%s\", \"weight_bytes\": %llu}\n",
                LLAMA_CPP_PYTHON_VERSION, name.c_str(), static_cast<unsigned long long>(engine.weight_bytes()));
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string verb;
        words >> verb;
        if (verb == "decode") {
            int requests = 0, context = 0, tokens = 0;
            words >> requests >> context >> tokens;
            std::printf("{\"tokens_per_s\": %.6f}\n", engine.decode(requests, context, tokens));
        } else if (verb == "prefill") {
            int tokens = 0;
            words >> tokens;
            std::printf("{\"tokens_per_s\": %.6f}\n", engine.prefill(tokens));
        } else if (verb == "embed") {
            int texts = 0, tokens = 0;
            words >> texts >> tokens;
            std::printf("{\"texts_per_s\": %.6f}\n", engine.embed(texts, tokens));
        } else if (verb == "logits") {
            std::string ids, out;
            words >> ids >> out;
            std::printf("{\"rows\": %d}\n", engine.logits(read_ids(ids), out));
        } else {
            return 64;
        }
        std::fflush(stdout);
    }
}
