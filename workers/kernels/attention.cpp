// Attention of a packed, ragged batch over the paged KV cache: prompt chunks, single tokens and draft trees.
//
//     keys     [num_blocks][num_kv_heads][head_dim][block_size]   a block's keys side by side, for scores
//     values   [num_blocks][num_kv_heads][block_size][head_dim]   a token's values side by side
//
// They are read in whole vectors. Where a size is no multiple of one, what lies behind is read, computed with and
// never looked at; so the cache has to end a vector later than its last number (`PanelStore`).
//
// A query sees its path: the context and the row's tokens up to it, which lie in the order of the block table, then
// for a node its ancestors and itself, which lie among the row's nodes.
//
//     position     0 ..................... context | ........ canonical | canonical + 1 ...
//     lies in      the block table, in order       | the row's tokens   | slots of the node's ancestors
//
// Whatever is summed is summed in the order of positions, in segments that start at multiples of one length, by one
// chain of fused multiply-adds each. So the result of a query has the same bits whether it came alone or in a batch,
// as a node of a tree or as a decoded token: what `exact` mode stands on. Segments are also the unit of parallel work
// (flash decoding, with a fixed split).
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "simd.h"

namespace outrider {
namespace {

constexpr int kTile = 6;               // (query, head of the group) pairs that share what is read
constexpr int64_t kSegment = 512;      // positions, rounded up to whole blocks
constexpr int64_t kMaxHeadDim = 1024;
constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Shape {
  int64_t num_heads, num_kv_heads, group, head_dim, block_size, segment;
  int64_t lines, width;  // block_size and head_dim in whole vectors
};

struct Scoring {
  float scaling;
  int64_t window;  // a key is seen if query position - key position < window; 0: no limit
  float softcap;   // 0: none
  const float* sinks;  // [num_heads] or null
};

// One row of the batch.
struct Row {
  int64_t start, end;        // of its queries in the packed pass
  int64_t context, num_linear;
  const int32_t* blocks;
  int64_t canonical() const { return context + num_linear; }
  int64_t num_nodes() const { return end - start - num_linear; }
};

struct Group {  // a tile of one row and KV head: pairs [first, last) of (query, head of the group)
  const Row* row;
  int64_t head, first, last, first_segment, num_segments, first_item;
};

struct Item {
  const Group* group;
  int64_t segment;
};

template <typename T>
struct Pass {
  Shape shape;
  Scoring scoring;
  const T* keys;    // of this layer
  const T* values;
  const float* queries;      // [num_kv_heads][num_tokens * group][head_dim], scaled
  const int64_t* positions;  // [num_tokens]
  const int32_t* parents;    // [num_tokens]
  int64_t num_tokens;

  const float* query(int64_t head, int64_t pair) const {
    return queries + (head * num_tokens * shape.group + pair) * shape.head_dim;
  }
  const T* key_block(int64_t block, int64_t head) const {
    return keys + (block * shape.num_kv_heads + head) * shape.head_dim * shape.block_size;
  }
  const T* value_block(int64_t block, int64_t head) const {
    return values + (block * shape.num_kv_heads + head) * shape.block_size * shape.head_dim;
  }
};

// Scores of kRows queries against kVecs vectors of keys.
template <int kRows, int kVecs, typename T>
inline void score(const float* q, int64_t head_dim, const T* keys, int64_t block_size, float* scores,
                  int64_t stride) {
  Vec sums[kRows][kVecs] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      const Vec line = load(keys + d * block_size + v * kLanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) sums[row][v] = multiply_add(splat(q[row * head_dim + d]), line, sums[row][v]);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(scores + row * stride + v * kLanes, sums[row][v]);
}

template <int kRows, typename T>
inline void score_block(const Shape& shape, const float* q, const T* keys, float* scores, int64_t stride) {
  int64_t line = 0;
  for (; line + 2 * kLanes <= shape.lines; line += 2 * kLanes)
    score<kRows, 2>(q, shape.head_dim, keys + line, shape.block_size, scores + line, stride);
  for (; line < shape.lines; line += kLanes)
    score<kRows, 1>(q, shape.head_dim, keys + line, shape.block_size, scores + line, stride);
}

// sums[row] += weights[row][j] * values[j] for j in order.
template <int kRows, int kVecs, typename T>
inline void weigh(const float* weights, int64_t stride, const T* values, int64_t width, int64_t count, Vec* sums) {
  Vec held[kRows][kVecs];  // in registers: what `sums` points to could be anything
  std::memcpy(held, sums, sizeof(held));
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      const Vec line = load(values + j * width + v * kLanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) held[row][v] = multiply_add(splat(weights[row * stride + j]), line, held[row][v]);
    }
  }
  std::memcpy(sums, held, sizeof(held));
}

// One tile against one segment: leaves the largest score, the sum of weights and the weighted values of each pair.
template <int kRows, typename T>
class Tile {
 public:
  Tile(const Pass<T>& pass, const Item& item, std::vector<float>& buffer)
      : pass_(pass),
        shape_(pass.shape),
        row_(*item.group->row),
        head_(item.group->head),
        first_(item.group->first),
        begin_(item.segment * shape_.segment),
        end_(begin_ + shape_.segment) {
    stride_ = shape_.segment + shape_.lines;
    node_stride_ = round_up(row_.num_nodes(), shape_.block_size) + 2 * shape_.lines;
    const size_t needed = kRows * (stride_ + node_stride_);
    if (buffer.size() < needed) buffer.resize(needed);
    scores_ = buffer.data();
    node_scores_ = scores_ + kRows * stride_;
  }

  // result: kRows times [largest, sum, values of `width`]
  void run(float* result, int64_t result_stride) {
    for (int row = 0; row < kRows; ++row) {
      const int64_t seen = pass_.positions[query(row)] + 1;
      counts_[row] = std::clamp<int64_t>(seen - begin_, 0, shape_.segment);
      canonical_ = std::max(canonical_, std::clamp<int64_t>(std::min(seen, row_.canonical()) - begin_, 0, shape_.segment));
    }
    score_canonical();
    if (row_.canonical() < end_) score_nodes();
    for (int row = 0; row < kRows; ++row) {
      float* target = result + row * result_stride;
      weights(row, target[0], target[1]);
    }
    int64_t d = 0;
    for (; d + 2 * kLanes <= shape_.width; d += 2 * kLanes) weigh_values<2>(d, result + 2, result_stride);
    for (; d < shape_.width; d += kLanes) weigh_values<1>(d, result + 2, result_stride);
  }

 private:
  int64_t query(int row) const { return row_.start + (first_ + row) / shape_.group; }
  bool is_node(int64_t query) const { return query >= row_.start + row_.num_linear; }

  void score_canonical() {
    const float* q = pass_.query(head_, row_.start * shape_.group + first_);
    for (int64_t offset = 0; offset < canonical_; offset += shape_.block_size) {
      const int64_t block = row_.blocks[(begin_ + offset) / shape_.block_size];
      score_block<kRows>(shape_, q, pass_.key_block(block, head_), scores_ + offset, stride_);
    }
  }

  // All of the row's nodes are scored, where they lie; each node of the tile then takes its ancestors' scores.
  void score_nodes() {
    bool any = false;
    for (int row = 0; row < kRows; ++row) any |= is_node(query(row));
    if (!any) return;
    const float* q = pass_.query(head_, row_.start * shape_.group + first_);
    const int64_t first_block = row_.canonical() / shape_.block_size;
    const int64_t last_block = (row_.canonical() + row_.num_nodes() - 1) / shape_.block_size;
    for (int64_t block = first_block; block <= last_block; ++block)
      score_block<kRows>(shape_, q, pass_.key_block(row_.blocks[block], head_),
                         node_scores_ + (block - first_block) * shape_.block_size, node_stride_);
    const int64_t shift = row_.canonical() - first_block * shape_.block_size;
    const int64_t first_node = row_.start + row_.num_linear;
    for (int row = 0; row < kRows; ++row)
      for (int64_t node = query(row); is_node(node); node = pass_.parents[node]) {
        const int64_t position = pass_.positions[node];
        if (position >= begin_ && position < end_)
          scores_[row * stride_ + position - begin_] = node_scores_[row * node_stride_ + shift + node - first_node];
      }
  }

  // Turns a row's scores into weights relative to the largest score.
  void weights(int row, float& largest_score, float& sum_of_weights) {
    float* s = scores_ + row * stride_;
    const int64_t count = counts_[row], padded = round_up(std::max(count, canonical_), kLanes);
    std::fill(s + count, s + padded, kNever);
    if (pass_.scoring.softcap > 0)
      for (int64_t j = 0; j < count; ++j) s[j] = pass_.scoring.softcap * std::tanh(s[j] / pass_.scoring.softcap);
    if (pass_.scoring.window > 0) {
      const int64_t first_seen = pass_.positions[query(row)] - pass_.scoring.window + 1 - begin_;
      std::fill(s, s + std::clamp<int64_t>(first_seen, 0, count), kNever);
    }
    Vec best = splat(kNever);
    for (int64_t j = 0; j < padded; j += kLanes) best = maximum(load(s + j), best);
    largest_score = largest(best);
    sum_of_weights = 0.0f;
    if (largest_score == kNever) {
      std::fill(s, s + padded, 0.0f);
      return;
    }
    Vec total = {};
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Vec weight = exp_nonpositive(load(s + j) - splat(largest_score));
      store(s + j, weight);
      total += weight;
    }
    sum_of_weights = sum(total);
  }

  template <int kVecs>
  void weigh_values(int64_t d, float* result, int64_t result_stride) {
    Vec sums[kRows * kVecs] = {};
    for (int64_t offset = 0; offset < canonical_; offset += shape_.block_size) {
      const int64_t block = row_.blocks[(begin_ + offset) / shape_.block_size];
      weigh<kRows, kVecs>(scores_ + offset, stride_, pass_.value_block(block, head_) + d, shape_.head_dim,
                          std::min(shape_.block_size, canonical_ - offset), sums);
    }
    if (row_.canonical() < end_)
      for (int row = 0; row < kRows; ++row) weigh_nodes<kVecs>(row, query(row), d, sums + row * kVecs);
    for (int row = 0; row < kRows; ++row)
      for (int v = 0; v < kVecs; ++v) store(result + row * result_stride + d + v * kLanes, sums[row * kVecs + v]);
  }

  // The path is walked from its end, and summed from its start: hence the recursion, as deep as the tree.
  template <int kVecs>
  void weigh_nodes(int row, int64_t node, int64_t d, Vec* sums) {
    if (!is_node(node) || pass_.positions[node] < begin_) return;
    weigh_nodes<kVecs>(row, pass_.parents[node], d, sums);
    if (pass_.positions[node] >= end_) return;
    const int64_t slot = row_.canonical() + node - row_.start - row_.num_linear;
    const T* values = pass_.value_block(row_.blocks[slot / shape_.block_size], head_);
    weigh<1, kVecs>(scores_ + row * stride_ + pass_.positions[node] - begin_, 0,
                    values + slot % shape_.block_size * shape_.head_dim + d, 0, 1, sums);
  }

  const Pass<T>& pass_;
  const Shape& shape_;
  const Row& row_;
  const int64_t head_, first_, begin_, end_;
  int64_t stride_, node_stride_, canonical_ = 0, counts_[kRows];
  float *scores_, *node_scores_;
};

template <typename T>
void run_item(const Pass<T>& pass, const Item& item, std::vector<float>& buffer, float* result, int64_t stride) {
  const auto run = [&](auto rows) { Tile<decltype(rows)::value, T>(pass, item, buffer).run(result, stride); };
  switch (item.group->last - item.group->first) {
    case 1: return run(std::integral_constant<int, 1>{});
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 4: return run(std::integral_constant<int, 4>{});
    case 5: return run(std::integral_constant<int, 5>{});
    default: return run(std::integral_constant<int, 6>{});
  }
}

// The segments of one group, put together in order: [num pairs][head_dim] into the output.
template <typename T>
void combine(const Pass<T>& pass, const Group& group, const float* results, int64_t stride, T* output) {
  const Shape& shape = pass.shape;
  for (int64_t pair = group.first; pair < group.last; ++pair) {
    const int64_t query = group.row->start + pair / shape.group, head = group.head * shape.group + pair % shape.group;
    const float* parts = results + (group.first_item * kTile + pair - group.first) * stride;
    const int64_t step = kTile * stride;
    float best = pass.scoring.sinks ? pass.scoring.sinks[head] : kNever;
    for (int64_t s = 0; s < group.num_segments; ++s) best = std::max(best, parts[s * step]);
    float total = 0.0f;
    T* target = output + (query * shape.num_heads + head) * shape.head_dim;
    float sums[kMaxHeadDim];
    std::fill(sums, sums + shape.head_dim, 0.0f);
    for (int64_t s = 0; s < group.num_segments; ++s) {
      const float* part = parts + s * step;
      if (part[0] == kNever) continue;
      const float factor = std::exp(part[0] - best);
      total += factor * part[1];
      for (int64_t d = 0; d < shape.head_dim; ++d) sums[d] += factor * part[2 + d];
    }
    if (pass.scoring.sinks) total += std::exp(pass.scoring.sinks[head] - best);
    for (int64_t d = 0; d < shape.head_dim; ++d) target[d] = from_float<T>(sums[d] / total);
  }
}

// Work for every core, handed out one piece at a time: pieces differ in size.
template <typename Work>
void share(int64_t count, bool is_small, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
  };
  const int64_t num_threads = is_small ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  if (num_threads <= 1) take(0, 1);
  else at::parallel_for(0, num_threads, 1, take);
}

// The batch as one list of integers, in this order; see `pack_layout` in forward.py.
struct PackedLayout {
  const int32_t *cu_queries, *context_lens, *num_linear, *cu_blocks, *block_tables, *parents, *slots;
  int64_t num_rows, num_tokens;

  explicit PackedLayout(const at::Tensor& packed) {
    const int32_t* next = packed.const_data_ptr<int32_t>();
    num_rows = next[0];
    num_tokens = next[1];
    const int64_t num_blocks = next[2];
    next += 3;
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    cu_queries = take(num_rows + 1);
    context_lens = take(num_rows);
    num_linear = take(num_rows);
    cu_blocks = take(num_rows + 1);
    block_tables = take(num_blocks);
    parents = take(num_tokens);
    slots = take(num_tokens);
    TORCH_CHECK(next == packed.const_data_ptr<int32_t>() + packed.numel(), "the packed layout has another length");
  }

  // Nodes that are a chain lie where the row's tokens would, in the order of their positions: they count as tokens.
  std::vector<Row> rows() const {
    std::vector<Row> result(num_rows);
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t start = cu_queries[r], end = cu_queries[r + 1];
      int64_t chained = start + num_linear[r];
      while (chained < end && parents[chained] == chained - 1) ++chained;
      const int64_t in_order = chained == end ? end - start : num_linear[r];
      result[r] = {start, end, context_lens[r], in_order, block_tables + cu_blocks[r]};
    }
    return result;
  }
};

std::vector<int64_t> positions_of(const std::vector<Row>& rows, const int32_t* parents, int64_t num_tokens) {
  std::vector<int64_t> positions(num_tokens);
  for (const Row& row : rows)
    for (int64_t i = row.start; i < row.end; ++i)
      positions[i] = parents[i] < 0 ? row.context : positions[parents[i]] + 1;
  return positions;
}

std::vector<Group> groups_of(const std::vector<Row>& rows, const Shape& shape, const int64_t* positions,
                             int64_t window) {
  std::vector<Group> groups;
  int64_t num_items = 0;
  for (const Row& row : rows)
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const int64_t num_pairs = (row.end - row.start) * shape.group;
      for (int64_t first = 0; first < num_pairs; first += kTile) {
        const int64_t last = std::min<int64_t>(first + kTile, num_pairs);
        int64_t lowest = std::numeric_limits<int64_t>::max(), highest = 0;
        for (int64_t q = row.start + first / shape.group; q <= row.start + (last - 1) / shape.group; ++q) {
          lowest = std::min(lowest, positions[q]);
          highest = std::max(highest, positions[q]);
        }
        const int64_t first_seen = window > 0 ? std::max<int64_t>(0, lowest - window + 1) : 0;
        const int64_t first_segment = first_seen / shape.segment;
        const int64_t num_segments = highest / shape.segment - first_segment + 1;
        groups.push_back({&row, head, first, last, first_segment, num_segments, num_items});
        num_items += num_segments;
      }
    }
  return groups;
}

template <typename T, typename Raw>
const T* raw(const at::Tensor& tensor) {
  return reinterpret_cast<const T*>(tensor.const_data_ptr<Raw>());
}

// Queries as float, scaled, by KV head: [num_kv_heads][num_tokens * group][head_dim].
template <typename T, typename Raw>
void gather_queries(const at::Tensor& query, const Shape& shape, float scaling, std::vector<float>& queries) {
  const int64_t num_tokens = query.size(2), head_stride = query.stride(1), token_stride = query.stride(2);
  queries.resize(shape.num_heads * num_tokens * shape.head_dim);
  const T* source = raw<T, Raw>(query);
  float* target = queries.data();
  for (int64_t head = 0; head < shape.num_kv_heads; ++head)
    for (int64_t token = 0; token < num_tokens; ++token)
      for (int64_t g = 0; g < shape.group; ++g, target += shape.head_dim) {
        const T* from = source + (head * shape.group + g) * head_stride + token * token_stride;
        for (int64_t d = 0; d < shape.head_dim; ++d) target[d] = to_float(from[d]) * scaling;
      }
}

template <typename T, typename Raw>
void write_kv(const at::Tensor& key, const at::Tensor& value, T* keys, T* values, const Shape& shape,
              const int32_t* slots) {
  const T *k = raw<T, Raw>(key), *v = raw<T, Raw>(value);
  const int64_t num_tokens = key.size(2);
  at::parallel_for(0, num_tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t block = slots[token] / shape.block_size, line = slots[token] % shape.block_size;
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        T* key_target = keys + (block * shape.num_kv_heads + head) * shape.head_dim * shape.block_size + line;
        T* value_target = values + ((block * shape.num_kv_heads + head) * shape.block_size + line) * shape.head_dim;
        const T* key_source = k + head * key.stride(1) + token * key.stride(2);
        const T* value_source = v + head * value.stride(1) + token * value.stride(2);
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          key_target[d * shape.block_size] = key_source[d];
          value_target[d] = value_source[d];
        }
      }
    }
  });
}

template <typename T, typename Raw>
void attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& keys,
            const at::Tensor& values, const PackedLayout& layout, const Shape& shape, const Scoring& scoring,
            at::Tensor& output) {
  T* key_data = const_cast<T*>(raw<T, Raw>(keys));
  T* value_data = const_cast<T*>(raw<T, Raw>(values));
  write_kv<T, Raw>(key, value, key_data, value_data, shape, layout.slots);

  static thread_local std::vector<float> queries, results;
  gather_queries<T, Raw>(query, shape, scoring.scaling, queries);
  const std::vector<Row> rows = layout.rows();
  const std::vector<int64_t> positions = positions_of(rows, layout.parents, layout.num_tokens);
  const std::vector<Group> groups = groups_of(rows, shape, positions.data(), scoring.window);
  std::vector<Item> items;
  for (const Group& group : groups)
    for (int64_t s = 0; s < group.num_segments; ++s) items.push_back({&group, group.first_segment + s});
  const int64_t stride = shape.width + 2;
  results.resize(items.size() * kTile * stride);

  const Pass<T> pass{shape,          scoring, key_data, value_data, queries.data(), positions.data(),
                     layout.parents, layout.num_tokens};
  float* result_data = results.data();
  T* output_data = reinterpret_cast<T*>(output.mutable_data_ptr<Raw>());
  const bool is_small = items.size() * shape.head_dim < 128;
  share(items.size(), is_small, [&](int64_t i) {
    static thread_local std::vector<float> buffer;
    run_item(pass, items[i], buffer, result_data + i * kTile * stride, stride);
  });
  share(groups.size(), groups.size() < 64,
        [&](int64_t i) { combine(pass, groups[i], result_data, stride, output_data); });
}

// query [1, num_heads, num_tokens, head_dim]; key, value [1, num_kv_heads, num_tokens, head_dim]; keys, values: one
// layer's, as said on top; sinks [num_heads] f32. Writes the pass's keys and values, then attends. The result is
// [1, num_tokens, num_heads, head_dim].
//
// The schema does not tell that keys and values are written to. Told, the compiler would copy the cache around each
// call; and nothing else in a graph reads them: a layer has its own, and the order of layers follows from their data.
at::Tensor paged_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const at::Tensor& keys, const at::Tensor& values, const at::Tensor& packed_layout,
                           double scaling, int64_t window, double softcap, const std::optional<at::Tensor>& sinks) {
  TORCH_CHECK(query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1, "a head's numbers lie side by side");
  TORCH_CHECK(query.scalar_type() == keys.scalar_type(), "queries and cache differ in dtype");
  Shape shape;
  shape.num_heads = query.size(1);
  shape.num_kv_heads = key.size(1);
  shape.group = shape.num_heads / shape.num_kv_heads;
  shape.head_dim = query.size(3);
  shape.block_size = values.size(2);
  shape.lines = round_up(shape.block_size, kLanes);
  shape.width = round_up(shape.head_dim, kLanes);
  shape.segment = round_up(kSegment, shape.block_size);
  TORCH_CHECK(shape.head_dim <= kMaxHeadDim, "a head of at most ", kMaxHeadDim, " numbers is served");
  const Scoring scoring{float(scaling), window, float(softcap), sinks ? sinks->const_data_ptr<float>() : nullptr};
  const PackedLayout layout(packed_layout);
  TORCH_CHECK(layout.num_tokens == query.size(2), "the layout is that of another pass");
  at::Tensor output = at::empty({1, query.size(2), shape.num_heads, shape.head_dim}, query.options());
  if (query.scalar_type() == at::kFloat)
    attend<float, float>(query, key, value, keys, values, layout, shape, scoring, output);
  else attend<uint16_t, at::BFloat16>(query, key, value, keys, values, layout, shape, scoring, output);
  return output;
}

// Copies slots in every layer: keys [num_layers, num_blocks, num_kv_heads, head_dim, block_size], values likewise, moves
// [num_moves, 2] i64 of (source slot, destination slot). All are read before one is written.
template <typename T>
void move_all(at::Tensor& keys, at::Tensor& values, const at::Tensor& moves) {
  const int64_t num_layers = keys.size(0), num_heads = keys.size(2), head_dim = keys.size(3);
  const int64_t block_size = values.size(3), num_moves = moves.size(0);
  const int64_t* slots = moves.const_data_ptr<int64_t>();
  T* key_data = static_cast<T*>(keys.mutable_data_ptr());
  T* value_data = static_cast<T*>(values.mutable_data_ptr());
  at::parallel_for(0, num_layers, std::max<int64_t>(1, 256 / num_moves), [&](int64_t begin, int64_t end) {
    std::vector<T> held(num_moves * num_heads * 2 * head_dim);
    for (int64_t layer = begin; layer < end; ++layer)
      for (const int64_t side : {0, 1}) {  // read all, then write all
        T* next = held.data();
        for (int64_t move = 0; move < num_moves; ++move) {
          const int64_t slot = slots[2 * move + side], block = slot / block_size, line = slot % block_size;
          for (int64_t head = 0; head < num_heads; ++head) {
            T* key = key_data + layer * keys.stride(0) + block * keys.stride(1) + head * keys.stride(2) + line;
            T* value = value_data + layer * values.stride(0) + block * values.stride(1) + head * values.stride(2) +
                       line * head_dim;
            for (int64_t d = 0; d < head_dim; ++d, ++next) side ? void(key[d * block_size] = *next) : void(*next = key[d * block_size]);
            for (int64_t d = 0; d < head_dim; ++d, ++next) side ? void(value[d] = *next) : void(*next = value[d]);
          }
        }
      }
  });
}

void move_kv(at::Tensor& keys, at::Tensor& values, const at::Tensor& moves) {
  if (keys.scalar_type() == at::kFloat) move_all<float>(keys, values, moves);
  else move_all<uint16_t>(keys, values, moves);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def(
      "paged_attention(Tensor query, Tensor key, Tensor value, Tensor keys, Tensor values, Tensor packed_layout, "
      "float scaling, int window, float softcap, Tensor? sinks) -> Tensor");
  library.def("move_kv(Tensor(a!) keys, Tensor(b!) values, Tensor moves) -> ()");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("paged_attention", paged_attention);
  library.impl("move_kv", move_kv);
}

}  // namespace outrider
