#include "../../examples/train_text/corpus.hpp"

#include <gtest/gtest.h>

#include "support/message.hpp"
#include "support/temporary_folder.hpp"

namespace text {
namespace {

using torchlore::testing::message_of;

class Corpora : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& bytes) {
    const auto path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }
  std::string at(const std::string& name) { return (folder_ / name).string(); }

  torchlore::testing::TemporaryFolder kept_;
  fs::path folder_ = kept_.path();
};

TEST_F(Corpora, MissingFileIsNamed) {
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_data({at("none.txt")}); }),
            "cannot read the corpus file \"" + at("none.txt") +
                "\": No such file or directory; pass files or folders of text by --data");
}

TEST_F(Corpora, EmptyFileIsNamed) {
  const auto path = write("empty.txt", "");
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_data({path}); }),
            "the corpus file \"" + path + "\" is empty; pass files or folders of text by --data");
}

TEST_F(Corpora, BinaryFileIsNamedWithTheByte) {
  const auto path = write("binary.gz", std::string("ab\0cd", 5));
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_data({path}); }),
            "the corpus file \"" + path +
                "\" is not text: byte 2 is 0; decompress or convert it, or pass other files by "
                "--data");
}

TEST_F(Corpora, FolderWithoutFilesIsNamed) {
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_data({folder_.string()}); }),
            "the corpus folder \"" + folder_.string() +
                "\" holds no text file; pass files or folders of text by --data");
}

TEST_F(Corpora, MissingHeadersAreNamed) {
  EXPECT_EQ(message_of<c10::ValueError>([&] { read_headers(folder_); }),
            "LibTorch's headers are not in \"" + folder_.string() +
                "\", where they were when this program was built; pass files or folders of text by "
                "--data");
}

TEST_F(Corpora, TooShortForAWindow) {
  const auto corpus = read_data({write("short.txt", "0123456789012345678\n")});
  EXPECT_EQ(message_of<c10::ValueError>([&] { check_long_enough(corpus, 64); }),
            "the corpus is too short: 20 bytes to train on and 2 held out, but --context 64 needs "
            "65 of each; pass more text by --data or a shorter --context");
}

TEST_F(Corpora, OneFileIsSplitAtItsEnd) {
  const auto corpus = read_data({write("one.txt", std::string(95, 'a') + std::string(5, 'b'))});
  EXPECT_EQ(corpus.training, std::string(95, 'a') + '\0');
  EXPECT_EQ(corpus.held_out, std::string(5, 'b') + '\0');
  EXPECT_EQ(corpus.held_out_files, 0);
}

TEST_F(Corpora, ManyFilesAreSplitByFileInSortedOrder) {
  std::string trained, held_out;
  for (int i = 0; i < 40; ++i) {
    const std::string name =
        std::string("f") + static_cast<char>('0' + i / 10) + static_cast<char>('0' + i % 10);
    write(name, name);
    (i == 10 || i == 30 ? held_out : trained) += name + '\0';
  }
  const auto corpus = read_data({folder_.string()});
  EXPECT_EQ(corpus.files, 40);
  EXPECT_EQ(corpus.held_out_files, 2);
  EXPECT_EQ(corpus.training, trained);
  EXPECT_EQ(corpus.held_out, held_out);
}

TEST_F(Corpora, HeadersAreTakenFromThreeFoldersOnly) {
  write("ATen/a.h", "A");
  write("c10/sub/b.h", "B");
  write("torch/c.h", "C");
  write("torch/notes.txt", "no");
  write("fmt/d.h", "D");
  const auto corpus = read_headers(folder_);
  EXPECT_EQ(corpus.files, 3);
  EXPECT_EQ(corpus.held_out, std::string("A\0B\0C\0", 6));
}

TEST_F(Corpora, FingerprintTellsTextsApart) {
  const auto one = read_data({write("one.txt", std::string(100, 'a'))});
  const auto two = read_data({write("two.txt", std::string(99, 'a') + 'b')});
  EXPECT_EQ(fingerprint(one), fingerprint(read_data({at("one.txt")})));
  EXPECT_NE(fingerprint(one), fingerprint(two));
}

}  // namespace
}  // namespace text
