// csv.h: tables of image paths and captions (open_clip's --dataset-type csv).
//
// RFC 4180 with a choice of separator: a field in quotes may hold separators, line ends and doubled quotes.
// Line ends are LF, CRLF or CR; a UTF-8 byte order mark and blank lines are skipped. The first row names the
// columns. As in spreadsheets and pandas, a quote inside an unquoted field is an ordinary character.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/sample_source.h"

namespace switchback {

class InputFile;

class CsvReader {
 public:
  CsvReader(const InputFile& file, char separator);

  // The next row that is not blank; false at the end. Error: a quote that is never closed, by line.
  bool next(std::vector<std::string>& fields);
  uint64_t row_offset() const { return row_offset_; }  // where the row just read begins in the file
  uint64_t row_size() const { return row_size_; }      // its bytes, line end included
  uint64_t line() const { return line_; }              // its first line, from 1

 private:
  const InputFile& file_;
  char separator_;
  std::string buffer_;  // bytes [buffer_offset_, ...) of the file
  size_t used_ = 0;     // of buffer_
  uint64_t buffer_offset_ = 0, row_offset_ = 0, row_size_ = 0;
  uint64_t line_ = 0, next_line_ = 1;
};

// Splits the row at the start of `text`. Returns its size with the line end; 0 when the text ends first
// (inside quotes, or without a line end while `complete` says that more text may follow).
size_t parse_csv_row(std::string_view text, char separator, bool complete, std::vector<std::string>& fields);

// "," ";" "tab" "\t" (also as two characters, the way it survives a shell). Error: not one character.
char parse_csv_separator(const std::string& text);

// Index of a named column. Error: lists the columns found.
size_t find_csv_column(const std::string& path, const std::vector<std::string>& header,
                       const std::string& name, char separator);

struct CsvColumns {
  std::string image = "filepath", caption = "title";
  char separator = '\t';
};
// Rows are indexed by their offsets (12 bytes a row); text and images are read on demand. Paths are relative
// to the current folder. A missing image is a problem of its sample, counted when it is met.
std::shared_ptr<SampleSource> open_csv(const std::string& path, const CsvColumns& columns);

}  // namespace switchback
