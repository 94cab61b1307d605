// jpeg_baseline.cpp: file -> headers -> scan without escapes -> planes of samples -> RGB. ITU T.81 names the
// segments.
#include "data/jpeg_baseline.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "data/decoders.h"
#include "data/jpeg_colour.h"
#include "data/jpeg_huffman.h"
#include "data/jpeg_idct.h"

namespace switchback {
namespace {

using Bytes = std::span<const uint8_t>;

int word(Bytes bytes, size_t at) { return bytes[at] << 8 | bytes[at + 1]; }

struct Component {
  int id = 0, across = 1, down = 1;  // sampling factors
  size_t quantiser = 0, dc_table = 0, ac_table = 0;
  int dc = 0;                     // the last block's
  int64_t height = 0, width = 0;  // samples that belong to the picture
  int64_t stride = 0;             // plane (rows of whole MCUs, stride)
  std::vector<uint8_t> plane;
};

// Kept per thread: the planes' memory, and the Huffman tables, which are the same in most files.
struct Workspace {
  std::array<Component, 3> components;
  std::array<HuffmanTable, 4> dc_tables, ac_tables;
  std::array<std::array<uint16_t, 64>, 4> quantisers;  // in the order of rows
  std::vector<uint8_t> scan;                           // without escapes
  std::vector<size_t> segment_ends;                    // in `scan`: a restart marker was there, or the end
  std::vector<uint8_t> colour_rows;
  std::vector<int16_t> sums;
};

class BaselineJpeg {
 public:
  BaselineJpeg(Workspace& workspace, Bytes file) : work_(workspace), file_(file) {}

  bool decode(Image& to, const DecodeOptions& options) {
    if (!read_headers() || !is_supported()) return false;
    allocate(to, height_, width_, options);
    if (!remove_escapes()) return false;
    prepare_planes();
    if (!decode_scan()) return false;
    write_rows(to);
    return true;
  }

 private:
  std::span<Component> components() { return std::span(work_.components).first(count_); }

  // Up to the start of the scan.
  bool read_headers() {
    if (file_.size() < 2 || file_[0] != 0xFF || file_[1] != 0xD8) return false;
    size_t at = 2;
    while (at + 4 <= file_.size()) {
      if (file_[at] != 0xFF) return false;
      const int marker = file_[at + 1], length = word(file_, at + 2);
      if (length < 2 || at + 2 + static_cast<size_t>(length) > file_.size()) return false;
      const Bytes body = file_.subspan(at + 4, static_cast<size_t>(length) - 2);
      at += 2 + static_cast<size_t>(length);
      bool good = true;
      switch (marker) {
        case 0xC0:
        case 0xC1:
          good = read_frame(body);
          break;
        case 0xC4:
          good = read_huffman_tables(body);
          break;
        case 0xDB:
          good = read_quantisers(body);
          break;
        case 0xDD:
          if (body.size() != 2) return false;
          restart_interval_ = word(body, 0);
          break;
        case 0xE0:
          jfif_ = jfif_ || (body.size() >= 14 && std::memcmp(body.data(), "JFIF", 5) == 0);
          break;
        case 0xEE:
          if (body.size() >= 12 && std::memcmp(body.data(), "Adobe", 5) == 0) adobe_transform_ = body[11];
          break;
        case 0xDA:
          scan_at_ = at;
          return read_scan_header(body);
        default:
          if ((marker < 0xE0 || marker > 0xEF) && marker != 0xFE)
            return false;  // not an application's or a comment
      }
      if (!good) return false;
    }
    return false;
  }

  bool read_frame(Bytes body) {
    if (count_ != 0 || body.size() < 6 || body[0] != 8) return false;
    height_ = word(body, 1);
    width_ = word(body, 3);
    const size_t count = body[5];
    if ((count != 1 && count != 3) || body.size() != 6 + 3 * count || height_ == 0 || width_ == 0)
      return false;
    count_ = count;
    for (size_t i = 0; i < count_; ++i) {
      Component& component = work_.components[i];
      component.id = body[6 + 3 * i];
      component.across = body[7 + 3 * i] >> 4;
      component.down = body[7 + 3 * i] & 15;
      component.quantiser = body[8 + 3 * i];
      if (component.quantiser > 3 || component.across < 1 || component.across > 4 || component.down < 1 ||
          component.down > 4)
        return false;
      for (size_t j = 0; j < i; ++j)
        if (work_.components[j].id == component.id) return false;
    }
    return true;
  }

  bool read_quantisers(Bytes body) {
    for (; !body.empty(); body = body.subspan(65)) {
      if (body.size() < 65 || body[0] > 3) return false;  // also 16-bit ones
      for (size_t i = 0; i < 64; ++i) work_.quantisers[body[0]][kZigzag[i]] = body[1 + i];
      quantisers_seen_ |= 1u << body[0];
    }
    return true;
  }

  bool read_huffman_tables(Bytes body) {
    while (!body.empty()) {
      if (body.size() < 17 || (body[0] & 0xEC) != 0) return false;
      size_t size = 16;
      for (size_t i = 1; i <= 16; ++i) size += body[i];
      if (size > 16 + 256 || size + 1 > body.size()) return false;
      const size_t which = body[0] & 3;
      const bool dc = body[0] >> 4 == 0;
      if (!(dc ? work_.dc_tables : work_.ac_tables)[which].build(body.subspan(1, size), dc)) return false;
      (dc ? dc_tables_seen_ : ac_tables_seen_) |= 1u << which;
      body = body.subspan(1 + size);
    }
    return true;
  }

  bool read_scan_header(Bytes body) {
    if (count_ == 0 || body.size() != 4 + 2 * count_ || body[0] != count_) return false;
    for (size_t i = 0; i < count_; ++i) {
      Component& component = work_.components[i];
      const int tables = body[2 + 2 * i];
      if (body[1 + 2 * i] != component.id || (tables & 0xCC) != 0) return false;
      component.dc_table = static_cast<size_t>(tables >> 4);
      component.ac_table = static_cast<size_t>(tables & 3);
      if ((dc_tables_seen_ >> component.dc_table & 1) == 0 ||
          (ac_tables_seen_ >> component.ac_table & 1) == 0 ||
          (quantisers_seen_ >> component.quantiser & 1) == 0)
        return false;
    }
    return body[1 + 2 * count_] == 0 && body[2 + 2 * count_] == 63 && body[3 + 2 * count_] == 0;
  }

  bool is_supported() {
    const Component& first = work_.components[0];
    if (count_ == 1) {
      // Alone in a scan, a component's blocks come row by row, whatever its sampling factors say.
      work_.components[0].across = work_.components[0].down = 1;
      return true;
    }
    const Component &second = work_.components[1], &third = work_.components[2];
    for (const Component* colour : {&second, &third})
      if (colour->across != 1 || colour->down != 1) return false;
    const bool known = (first.across == 1 && first.down == 1) || (first.across == 2 && first.down <= 2);
    if (!known) return false;
    if (first.across == 2 && width_ <= 4)
      return false;  // libjpeg repeats colours that are at most 2 samples wide
    // The colour space is guessed as libjpeg does it; RGB is left to it.
    if (jfif_) return true;
    if (adobe_transform_ >= 0) return adobe_transform_ == 1;
    return first.id == 1 && second.id == 2 && third.id == 3;
  }

  // Copies the scan with FF 00 as FF, noting where restart markers were. It must be followed by the end
  // marker.
  bool remove_escapes() {
    work_.segment_ends.clear();
    work_.scan.resize(std::max(work_.scan.size(), file_.size() - scan_at_ + kReadBeyond));
    uint8_t* to = work_.scan.data();
    const uint8_t *from = file_.data() + scan_at_, *end = file_.data() + file_.size();
    while (true) {
      const auto* escape =
          static_cast<const uint8_t*>(std::memchr(from, 0xFF, static_cast<size_t>(end - from)));
      if (escape == nullptr || end - escape < 2) return false;
      std::memcpy(to, from, static_cast<size_t>(escape - from));
      to += escape - from;
      from = escape + 2;
      if (escape[1] == 0) {
        *to++ = 0xFF;
        continue;
      }
      work_.segment_ends.push_back(static_cast<size_t>(to - work_.scan.data()));
      if (escape[1] == 0xD9) break;
      // Restart markers count from 0 to 7.
      if (escape[1] != 0xD0 + static_cast<int>((work_.segment_ends.size() - 1) & 7)) return false;
    }
    std::memset(to, 0, kReadBeyond);
    return true;
  }

  void prepare_planes() {
    const Component& first = work_.components[0];
    mcus_across_ = (width_ + 8 * first.across - 1) / (8 * first.across);
    mcus_down_ = (height_ + 8 * first.down - 1) / (8 * first.down);
    for (Component& component : components()) {
      component.dc = 0;
      component.width = (width_ * component.across + first.across - 1) / first.across;
      component.height = (height_ * component.down + first.down - 1) / first.down;
      component.stride = mcus_across_ * component.across * 8;
      const auto size = static_cast<size_t>(mcus_down_ * component.down * 8 * component.stride + kVector);
      component.plane.resize(std::max(component.plane.size(), size));
    }
  }

  bool decode_scan() {
    const int64_t mcus = mcus_across_ * mcus_down_,
                  interval = restart_interval_ > 0 ? restart_interval_ : mcus;
    if (static_cast<int64_t>(work_.segment_ends.size()) != (mcus + interval - 1) / interval) return false;
    const uint8_t* begin = work_.scan.data();
    int64_t mcu = 0;
    for (const size_t end_at : work_.segment_ends) {
      const uint8_t* end = work_.scan.data() + end_at;
      BitReader reader(begin, end);
      for (Component& component : components()) component.dc = 0;
      for (const int64_t stop = std::min(mcus, mcu + interval); mcu < stop; ++mcu)
        for (Component& component : components())
          if (!decode_blocks(component, reader, mcu / mcus_across_, mcu % mcus_across_)) return false;
      begin = end;
    }
    return true;
  }

  // One component's blocks of one MCU.
  bool decode_blocks(Component& component, BitReader& reader, int64_t row, int64_t column) {
    alignas(32) int16_t block[80];
    const uint16_t* quantisers = work_.quantisers[component.quantiser].data();
    for (int v = 0; v < component.down; ++v)
      for (int h = 0; h < component.across; ++h) {
        std::memset(block, 0, sizeof(block));
        const BlockKind kind = decode_block(block, reader, work_.dc_tables[component.dc_table],
                                            work_.ac_tables[component.ac_table], component.dc);
        if (kind == BlockKind::damaged || reader.overrun()) return false;
        uint8_t* to = component.plane.data() + (row * component.down + v) * 8 * component.stride +
                      (column * component.across + h) * 8;
        if (!(kind == BlockKind::dc_only ? idct_dc_only(to, component.stride, block[0], quantisers[0])
                                         : idct(to, component.stride, block, quantisers)))
          return false;
      }
    return true;
  }

  void write_rows(Image& to) {
    const Component &first = work_.components[0], &second = work_.components[1], &third = work_.components[2];
    const int64_t colour_width = 2 * second.width + kVector;
    if (count_ == 3 && first.across == 2) {
      work_.colour_rows.resize(std::max(work_.colour_rows.size(), static_cast<size_t>(2 * colour_width)));
      work_.sums.resize(std::max(work_.sums.size(), static_cast<size_t>(second.width + 2)));
    }
    for (int64_t y = 0; y < height_; ++y) {
      const uint8_t* light = first.plane.data() + y * first.stride;
      if (count_ == 1) {
        grey_to_rgb(to.row(y), light, width_);
        continue;
      }
      const uint8_t* rows[2];
      for (size_t i = 0; i < 2; ++i)
        rows[i] = colour_row(i == 0 ? second : third, y,
                             work_.colour_rows.data() + static_cast<int64_t>(i) * colour_width);
      ycc_to_rgb(to.row(y), light, rows[0], rows[1], width_);
    }
  }

  // The samples of pixel row y at full width; `room` takes them where they must be computed.
  const uint8_t* colour_row(const Component& colour, int64_t y, uint8_t* room) {
    const Component& first = work_.components[0];
    const auto row = [&](int64_t at) {
      return colour.plane.data() + std::clamp(at, int64_t{0}, colour.height - 1) * colour.stride;
    };
    if (first.across == 1) return row(y);
    if (first.down == 1)
      upsample_row(room, row(y), colour.width);
    else
      upsample_two_rows(room, row(y / 2), row(y % 2 == 0 ? y / 2 - 1 : y / 2 + 1), colour.width,
                        work_.sums.data());
    return room;
  }

  static constexpr int64_t kVector = 32;      // loops may read a vector past the end
  static constexpr size_t kReadBeyond = 256;  // see BitReader: a block of the longest codes is 208 bytes

  Workspace& work_;
  Bytes file_;
  size_t count_ = 0, scan_at_ = 0;
  int64_t height_ = 0, width_ = 0, mcus_across_ = 0, mcus_down_ = 0;
  int restart_interval_ = 0, adobe_transform_ = -1;
  bool jfif_ = false;
  unsigned quantisers_seen_ = 0, dc_tables_seen_ = 0, ac_tables_seen_ = 0;
};

}  // namespace

bool decode_baseline_jpeg(Image& to, Bytes bytes, const DecodeOptions& options) {
  thread_local Workspace workspace;
  return BaselineJpeg(workspace, bytes).decode(to, options);
}

}  // namespace switchback
