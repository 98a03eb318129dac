// Repeats each launch of a file of 64-bit words from the same memory, which must come out the same each time.
// Arguments: the file, and the number of the synchronisation that is left out, -1 for none.

struct Region { uint64_t address; std::vector<char> before; std::unique_ptr<char[]> memory; };

static std::vector<uint64_t> words;
static size_t next_word;
static uint64_t word() { return words.at(next_word++); }

static void repeat_launch() {
    unsigned grid[3], block[3];
    const auto kernel = KERNELS[word()];
    const uint64_t rounds = word() * (left_out < 0 ? 1 : 8);     // few orders show that a fence is missing
    for (unsigned* sizes : {grid, block})
        for (int i = 0; i < 3; ++i) sizes[i] = word();
    std::vector<Region> regions(word());
    for (auto& region : regions) {
        region.address = word();
        region.before.resize(8 * word());
        region.memory.reset(new char[region.before.size()]);
        std::memcpy(region.before.data(), &words[next_word], region.before.size());
        next_word += region.before.size() / 8;
    }
    std::vector<uint64_t> values(word());
    std::vector<void*> arguments;
    for (auto& value : values) {
        const bool pointer = word();
        value = word();
        for (const auto& region : regions)
            if (pointer && region.address <= value && value < region.address + region.before.size()) {
                value = (uint64_t)region.memory.get() + value - region.address;
                break;
            }
        arguments.push_back(&value);
    }
    std::vector<std::vector<char>> first;
    for (uint64_t round = 0; round < rounds; ++round) {
        for (auto& region : regions) std::memcpy(region.memory.get(), region.before.data(), region.before.size());
        kernel(grid, block, arguments.data());
        for (size_t i = 0; i < regions.size(); ++i) {
            const char* after = regions[i].memory.get();
            if (!round) first.emplace_back(after, after + regions[i].before.size());
            if (std::memcmp(after, first[i].data(), first[i].size())) std::exit(DIFFERS);
        }
    }
}

int main(int, char** given) {
    left_out = std::atoi(given[2]);
    std::FILE* file = std::fopen(given[1], "rb");
    for (uint64_t each; std::fread(&each, 8, 1, file) == 1;) words.push_back(each);
    while (next_word < words.size()) repeat_launch();
}
