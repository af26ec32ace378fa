// inductor MODEL IMAGE SIZE…: what a model gives for one image, by torch's AOTInductor, a line for each output.
//
// MODEL: model.pt2, which does not tell what it takes: SIZE… is that, such as 1 3 224 224. IMAGE: a raw file of it,
// as docs/serving.md makes it: float32 or uint8, which the file's length tells.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: inductor MODEL IMAGE SIZE...\n";
    return 2;
  }
  try {
    c10::InferenceMode inference;
    at::set_num_threads(1);
    std::vector<int64_t> shape;
    for (int index = 3; index < count; ++index) shape.push_back(std::stol(arguments[index]));
    const auto bytes = static_cast<int64_t>(std::filesystem::file_size(arguments[2]));
    const auto values = c10::multiply_integers(shape);
    if (bytes != values && bytes != 4 * values) {
      throw std::runtime_error(std::string(arguments[2]) + ": is neither uint8 nor float32 of that size");
    }
    at::Tensor image = at::empty(shape, bytes == values ? at::kByte : at::kFloat);
    std::ifstream(arguments[2], std::ios::binary).read(static_cast<char*>(image.data_ptr()), bytes);
    torch::inductor::AOTIModelPackageLoader model(arguments[1]);
    at::Tensor outputs = model.run({image}).at(0).contiguous();
    std::cout.precision(std::numeric_limits<float>::max_digits10);
    for (int64_t index = 0; index < outputs.numel(); ++index) std::cout << outputs.data_ptr<float>()[index] << '\n';
  } catch (const c10::Error& error) {
    std::cerr << "error: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
