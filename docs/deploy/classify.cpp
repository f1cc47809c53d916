// Classify images with an ONNX file that export.py wrote: classify MODEL.onnx IMAGE...
// Prints the top 5 classes of each image. The metadata of the file describe how an image is prepared.
// An error ends in one line and exit code 2. An image that cannot be read is one line, and the program
// continues with the next one.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int THREADS = 0;  // 0: one for each core

int complain(const std::string& line) {
    std::fprintf(stderr, "%s\n", line.substr(0, line.find('\n')).c_str());
    return 2;
}

// Whether sums of int8 products overflow without an option: on x86 without VNNI; true if unknown. With VNNI the option
// would only double the time. On ARM it changes nothing.
bool sums_overflow() {
    std::ifstream cpu("/proc/cpuinfo");
    for (std::string word; cpu >> word;)
        if (word == "avx512_vnni" || word == "avx_vnni" || word == "amx_int8") return false;
    return true;
}

// The value of white that the header of a PGM or PPM declares, where OpenCV ignores it; 0 for all other files.
int declared_white(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string format, comment;
    int numbers[3] = {0, 0, 0};  // width, height, white
    file >> format;
    if (format != "P2" && format != "P3" && format != "P5" && format != "P6") return 0;
    for (int& number : numbers) {
        while ((file >> std::ws).peek() == '#') std::getline(file, comment);
        file >> number;
    }
    return format > "P3" || numbers[2] > 255 ? numbers[2] : 0;
}

// The image in blue, green, red of 8 bits; where it has 16 bits, each value is rounded.
cv::Mat decoded(const std::string& path) {
    cv::Mat image = cv::imread(path, cv::IMREAD_COLOR | cv::IMREAD_ANYDEPTH);
    const int white = image.depth() == CV_16U ? 65535 : 255, declared = declared_white(path);
    if (image.depth() > CV_16U) return cv::imread(path, cv::IMREAD_COLOR);  // float
    if (white > 255 || declared) image.convertTo(image, CV_8U, 255.0 / (declared ? declared : white));
    return image;
}

// The image with `width` columns, transposed. This is Pillow's bilinear resize, not that of cv::resize: a triangle
// of weights, as wide as the scale where the image is reduced, in fixed point of 22 bits.
cv::Mat resized_columns(const cv::Mat& image, int width) {
    cv::Mat result(width, image.rows, CV_8UC3);
    const double scale = double(image.cols) / width, reach = std::max(scale, 1.0);
    for (int column = 0; column < width; column++) {
        const double center = (column + 0.5) * scale;
        const int first = std::max(int(center - reach + 0.5), 0);
        const int count = std::min(int(center + reach + 0.5), image.cols) - first;
        std::vector<double> parts;
        for (int i = first; i < first + count; i++) parts.push_back(1 - std::abs(i - center + 0.5) / reach);
        const double sum = std::accumulate(parts.begin(), parts.end(), 0.0);
        std::vector<int> weights;
        for (double part : parts) weights.push_back(int(part / sum * (1 << 22) + 0.5));
        for (int row = 0; row < image.rows; row++) {
            cv::Vec3i value(1 << 21, 1 << 21, 1 << 21);
            for (int i = 0; i < count; i++) value += cv::Vec3i(image.at<cv::Vec3b>(row, first + i)) * weights[i];
            for (int c = 0; c < 3; c++) result.at<cv::Vec3b>(column, row)[c] = uchar(value[c] >> 22);
        }
    }
    return result;
}

struct Model {
    Ort::Session& session;
    std::vector<std::string> classes = metadata("classes");
    std::vector<float> mean = metadata("mean"), deviation = metadata("std");
    int resize = metadata("resize"), side = metadata("image_size");

    nlohmann::json metadata(const char* name) const {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(name, allocator);
        if (!text) throw std::runtime_error("its metadata have no " + std::string(name));
        return nlohmann::json::parse(text.get());
    }

    // float32 [3, side, side]: the shorter side is resized to `resize`, the center cropped and normalized.
    std::vector<float> prepared(cv::Mat image) const {
        const int64_t width = image.cols, height = image.rows, shorter = std::min(width, height);
        image = resized_columns(image, int(resize * width / shorter));
        image = resized_columns(image, int(resize * height / shorter));
        const int left = std::lrint((image.cols - side) / 2.0), top = std::lrint((image.rows - side) / 2.0);
        std::vector<float> values;
        for (int i = 0; i < 3 * side * side; i++) {
            const int channel = i / (side * side), row = i / side % side, column = i % side;
            const auto& pixel = image.at<cv::Vec3b>(top + row, left + column);  // blue, green, red
            values.push_back((pixel[2 - channel] / 255.0f - mean[channel]) / deviation[channel]);
        }
        return values;
    }

    void classify(const std::string& path) {
        const cv::Mat image = decoded(path);
        if (image.empty()) throw std::runtime_error("it is missing or not an image");
        std::vector<float> values = prepared(image);
        const int64_t shape[] = {1, 3, side, side};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto images = Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape, 4);
        const char *input = "images", *output = "logits";
        const auto results = session.Run(Ort::RunOptions{}, &input, &images, 1, &output, 1);
        const float* logits = results[0].GetTensorData<float>();
        std::vector<size_t> order(classes.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
        const float highest = logits[order[0]];
        double sum = 0;
        for (size_t k : order) sum += std::exp(logits[k] - highest);
        std::printf("%s\n", path.c_str());
        order.resize(std::min<size_t>(5, order.size()));
        for (size_t k : order)
            std::printf("  %6.2f%%  %s\n", 100 * std::exp(logits[k] - highest) / sum, classes[k].c_str());
    }
};

int main(int count, char** arguments) try {
    if (count < 3) return complain("usage: classify MODEL.onnx IMAGE...");
    cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR);
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(THREADS);
    if (sums_overflow()) options.AddConfigEntry("session.x64quantprecision", "1");
    Ort::Session session(environment, arguments[1], options);
    Model model{session};
    int status = 0;
    for (int i = 2; i < count; i++) try {
            model.classify(arguments[i]);
        } catch (const std::exception& error) {
            status = complain("cannot classify " + std::string(arguments[i]) + ": " + error.what());
        }
    return status;
} catch (const std::exception& error) {
    return complain("cannot use " + std::string(arguments[1]) + ": " + error.what());
}
