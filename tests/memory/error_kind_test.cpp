#include "torchlore/memory/error_kind.hpp"

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace torchlore {
namespace {

ErrorKind kind_of_text(const std::string& text) { return classify_error(c10::Error(text)); }

/// What was said, word for word, in reports of such errors.
TEST(ClassifyError, KnowsOutOfMemoryByItsText) {
  for (const char* text : {
           "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate "
           "memory: you tried to allocate 132426121216 bytes. Error code 12 (Cannot allocate "
           "memory)",
           "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you "
           "tried to allocate 1981808640 bytes.",
           "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 "
           "GiB of which 17.19 MiB is free.",
           "CUDA error: out of memory",
           "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
           "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
           "MPS backend out of memory (MPS allocated: 18.00 GB)",
           "XPU out of memory. Tried to allocate 2.00 GiB.",
       }) {
    EXPECT_EQ(kind_of_text(text), ErrorKind::out_of_memory) << text;
  }
}

TEST(ClassifyError, KnowsWhatOneDnnSaysUnderAMemoryLimit) {
  EXPECT_EQ(classify_error(std::runtime_error("could not create a primitive")),
            ErrorKind::out_of_memory);
  EXPECT_EQ(classify_error(std::runtime_error(
                "could not create a primitive descriptor for the matmul primitive")),
            ErrorKind::permanent);
}

TEST(ClassifyError, KnowsTimeOutsByTheirText) {
  for (const char* text : {
           "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, "
           "OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for "
           "600004 milliseconds before timing out.",
           "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
           "1800000ms for recv operation to complete",
           "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
           "[10.0.0.7]:30412",
           "Socket Timeout",
           "wait timeout after 300000ms, keys: /default_pg/0//cuda//0",
       }) {
    EXPECT_EQ(kind_of_text(text), ErrorKind::time_out) << text;
    EXPECT_EQ(classify_error(std::runtime_error(text)), ErrorKind::time_out) << text;
  }
}

TEST(ClassifyError, ALostDeviceIsPermanentWhateverElseIsSaid) {
  for (const char* text : {
           "CUDA error: device-side assert triggered",
           "CUDA error: an illegal memory access was encountered",
           "CUDA error: unspecified launch failure",
           "CUDA error: misaligned address",
           "CUDA error: uncorrectable ECC error encountered",
           "CUDA error: the launch timed out and was terminated",
           "[Rank 3] Process group watchdog thread terminated with exception: CUDA error: an "
           "illegal memory access was encountered; the work timed out waiting",
       }) {
    EXPECT_EQ(kind_of_text(text), ErrorKind::permanent) << text;
  }
}

TEST(ClassifyError, GoesByTypeFirst) {
  const c10::SourceLocation here{__func__, __FILE__, 1};
  EXPECT_EQ(classify_error(c10::OutOfMemoryError(here, "?")), ErrorKind::out_of_memory);
  EXPECT_EQ(classify_error(std::bad_alloc()), ErrorKind::out_of_memory);
  EXPECT_EQ(classify_error(c10::DistNetworkError(here, "host unreachable")), ErrorKind::time_out);
  EXPECT_EQ(classify_error(c10::DistBackendError(here, "NCCL error: invalid usage")),
            ErrorKind::permanent);
  EXPECT_EQ(classify_error(c10::AcceleratorError(here, 2, "?")), ErrorKind::out_of_memory);
  EXPECT_EQ(classify_error(c10::AcceleratorError(here, 719, "?")), ErrorKind::permanent);
  EXPECT_EQ(classify_error(c10::ValueError(here, "out of memory")), ErrorKind::permanent);
  EXPECT_EQ(classify_error(c10::NotImplementedError(here, "timed out waiting")),
            ErrorKind::permanent);
  EXPECT_EQ(classify_error(std::logic_error("a bug")), ErrorKind::permanent);
  const auto system = [](std::errc code) {
    return classify_error(std::system_error(std::make_error_code(code)));
  };
  EXPECT_EQ(system(std::errc::not_enough_memory), ErrorKind::out_of_memory);
  EXPECT_EQ(system(std::errc::timed_out), ErrorKind::time_out);
  EXPECT_EQ(system(std::errc::permission_denied), ErrorKind::permanent);
}

TEST(ClassifyError, SortsWhatLibTorchReallyThrows) {
  const auto kind = [](const auto& f) {
    try {
      f();
    } catch (const std::exception& error) {
      return classify_error(error);
    }
    ADD_FAILURE() << "did not throw";
    return ErrorKind::permanent;
  };
  EXPECT_EQ(kind([] { at::zeros({int64_t{1} << 50}); }), ErrorKind::out_of_memory);
  EXPECT_EQ(kind([] { at::mm(at::zeros({2, 3}), at::zeros({2, 3})); }), ErrorKind::permanent);
}

TEST(ErrorKindNames, AreThoseOfTheCode) {
  EXPECT_STREQ(to_string(ErrorKind::permanent), "permanent");
  EXPECT_STREQ(to_string(ErrorKind::out_of_memory), "out_of_memory");
  EXPECT_STREQ(to_string(ErrorKind::time_out), "time_out");
}

}  // namespace
}  // namespace torchlore
