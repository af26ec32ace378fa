// openvino MODEL IMAGE: what a model gives for one image, by OpenVINO, a line for each output.
//
// MODEL: model.xml (model.bin beside it) or model.onnx. IMAGE: a raw file of what the model takes, as docs/serving.md
// makes it: float32 or uint8, in the order of the model's axes.
#include <fstream>
#include <iostream>
#include <limits>
#include <openvino/openvino.hpp>

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: openvino MODEL IMAGE\n";
    return 2;
  }
  try {
    ov::Core core;
    ov::CompiledModel model = core.compile_model(
        arguments[1], "CPU", ov::inference_num_threads(1), ov::hint::inference_precision(ov::element::f32));
    ov::PartialShape shape = model.input().get_partial_shape();
    shape[0] = 1;  // the model takes any number of images
    ov::Tensor image(model.input().get_element_type(), shape.to_shape());
    std::ifstream file(arguments[2], std::ios::binary);
    file.read(static_cast<char*>(image.data()), image.get_byte_size());
    if (!file || file.peek() != EOF) {
      throw std::runtime_error(std::string(arguments[2]) + ": is not there, or not of the model's " +
                               std::to_string(image.get_byte_size()) + " bytes");
    }
    ov::InferRequest request = model.create_infer_request();
    request.set_input_tensor(image);
    request.infer();
    ov::Tensor outputs = request.get_output_tensor();
    std::cout.precision(std::numeric_limits<float>::max_digits10);
    for (size_t index = 0; index < outputs.get_size(); ++index) std::cout << outputs.data<float>()[index] << '\n';
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
