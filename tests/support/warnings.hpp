#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <vector>

namespace torchlore::testing {

/// The texts of all warnings of this thread since it was made.
class CollectWarnings : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
  std::vector<std::string> texts;

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

}  // namespace torchlore::testing
