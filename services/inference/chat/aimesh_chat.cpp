// Binds llama.cpp's library of chat templates, and what divides a model between GPUs and processor. Their users are `library.py` and
// `fit.py`.
//
// Each function takes JSON and returns JSON, {"ok": …} or {"error": "…"}, which the caller frees. No exception leaves this file. A stack
// overflow or an abort inside llama.cpp ends the process, so only the chat process loads this library (docs/decisions/0025).

#include "chat.h"
#include "chat-peg-parser.h"
#ifndef AIMESH_WITHOUT_FIT
#include "fit.h"
#endif
#include "json.h"
#include "log.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using json = common_json;

// One parser per (template, tools, choice); a worker's applications have few of them.
constexpr size_t MAX_PARSERS = 64;

// The moment that templates see as now; 0 for the clock's.
std::time_t moment = 0;

char * to_text(const json & reply) {
    // strdup, because a reply may be large and must not throw here.
    return strdup(reply.dump_safe().c_str());
}

char * answer(const std::function<json()> & work) {
    try {
        try {
            return to_text(json{{"ok", work()}});
        } catch (const std::exception & error) {
            return to_text(json{{"error", std::string(error.what())}});
        }
    } catch (...) {
        return strdup("{\"error\": \"llama.cpp threw something that is no exception\"}");
    }
}

json parsed(const char * request, size_t size) {
    return json::parse(std::string(request, size));
}

std::string text_of(const json & request, const char * key) {
    return request.value(key, std::string());
}

std::string formatted(std::time_t when, const char * format) {
    char text[64];
    std::tm broken{};
    gmtime_r(&when, &broken);
    return std::string(text, std::strftime(text, sizeof text, format, &broken));
}

common_chat_templates_ptr opened(const std::string & source, const std::string & bos, const std::string & eos) {
    if (source.empty()) {
        throw std::invalid_argument("the template is empty");
    }
    // common_chat_templates_init loses the message of a template that it can't read; this constructor keeps it.
    common_chat_template checked(source, bos, eos);
    return common_chat_templates_init(nullptr, source, bos, eos);
}

json capabilities(const common_chat_templates * templates) {
    json reply = json::object();
    for (const auto & [name, has] : common_chat_templates_get_caps(templates)) {
        reply[name] = has;
    }
    reply["supports_thinking"] = common_chat_templates_support_enable_thinking(templates);
    return reply;
}

common_chat_templates_inputs inputs_of(const json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools                 = common_chat_tools_parse_oaicompat(request.value("tools", json::array()));
    inputs.tool_choice           = common_chat_tool_choice_parse_oaicompat(request.value("choice", "auto"));
    inputs.parallel_tool_calls   = request.value("parallel", true);
    inputs.enable_thinking       = request.value("thinking", true);
    inputs.add_generation_prompt = request.value("answer", true);
    inputs.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK;
    if (moment != 0) {
        inputs.now = std::chrono::system_clock::from_time_t(moment);
        // llama.cpp sets both of them from the clock.
        inputs.chat_template_kwargs["datetime"]    = json::make(formatted(moment, "%b %d %Y")).dump();
        inputs.chat_template_kwargs["date_string"] = json::make(formatted(moment, "%d %b %Y")).dump();
    }
    const json variables = request.value("variables", json::object());
    for (const auto & [name, value] : variables.items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return inputs;
}

const char * name_of(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
            return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
            return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
            return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
            return "pattern_full";
    }
    throw std::logic_error("llama.cpp has a kind of trigger that this binding does not know");
}

json rendering(const common_chat_params & params) {
    json triggers = json::array();
    for (const auto & trigger : params.grammar_triggers) {
        triggers.push_back({{"kind", name_of(trigger.type)}, {"value", trigger.value}});
    }
    // What parse needs; callers hand it back as they got it.
    json parser{
        {"format", (int) params.format},
        {"generation_prompt", params.generation_prompt},
        {"arena", params.parser},
    };
    return json{
        {"prompt", params.prompt},
        {"generation_prompt", params.generation_prompt},
        {"triggers", triggers},
        {"thinking_start", params.thinking_start_tag},
        {"thinking_ends", params.thinking_end_tags},
        {"preserved", params.preserved_tokens},
        {"stops", params.additional_stops},
        {"parser", parser.dump()},
    };
}

const common_chat_parser_params & parser_of(const std::string & saved) {
    static std::map<std::string, std::unique_ptr<common_chat_parser_params>> parsers;
    auto found = parsers.find(saved);
    if (found == parsers.end()) {
        const json request   = json::parse(saved);
        auto       made      = std::make_unique<common_chat_parser_params>();
        const int  format    = request.at("format").get<int>();
        if (format < 0 || format >= COMMON_CHAT_FORMAT_COUNT) {
            throw std::invalid_argument("the parser has a format that llama.cpp does not know");
        }
        made->format            = (common_chat_format) format;
        made->reasoning_format  = COMMON_REASONING_FORMAT_DEEPSEEK;
        made->generation_prompt = text_of(request, "generation_prompt");
        const std::string arena = text_of(request, "arena");
        made->parser = arena.empty() ? build_chat_peg_parser([](common_chat_peg_builder & p) { return p.content(p.rest()) + p.end(); }) :
                                       common_peg_arena{};
        if (!arena.empty()) {
            made->parser.load(arena);
        }
        if (parsers.size() >= MAX_PARSERS) {
            parsers.clear();
        }
        found = parsers.emplace(saved, std::move(made)).first;
    }
    return *found->second;
}

std::unique_ptr<common_chat_peg_mapper> mapper_of(common_chat_format format, common_chat_msg & read) {
    switch (format) {
        case COMMON_CHAT_FORMAT_PEG_GEMMA4:
            return std::make_unique<common_chat_peg_gemma4_mapper>(read);
        case COMMON_CHAT_FORMAT_PEG_MINIMAX_M3:
            return std::make_unique<common_chat_peg_minimax_m3_mapper>(read);
        default:
            return std::make_unique<common_chat_peg_mapper>(read);
    }
}

// Where the last thoughts or content end, without spaces: characters of the text, which follows `prompt` bytes of input.
size_t end_of(const common_peg_parse_context & context, const common_peg_parse_result & result, const std::string & input, size_t prompt) {
    size_t end = prompt;
    context.ast.visit(result, [&](const common_peg_ast_node & node) {
        if (node.tag == common_chat_peg_builder::REASONING || node.tag == common_chat_peg_builder::CONTENT) {
            const size_t length = node.text.find_last_not_of(" \t\r\n") + 1;
            end                 = length == 0 ? end : std::max(end, node.start + length);
        }
    });
    return std::count_if(input.begin() + prompt, input.begin() + end, [](char byte) { return (byte & 0xC0) != 0x80; });
}

// As common_chat_parse, which does not say where anything ends.
json read_answer(const std::string & text, const common_chat_parser_params & params) {
    const std::string        input = params.generation_prompt + text;
    common_peg_parse_context context(input, COMMON_PEG_PARSE_FLAG_LENIENT);
    const auto               result = params.parser.parse(context);
    if (result.fail()) {
        throw std::runtime_error("the answer is not what the template describes, from byte " + std::to_string(result.end));
    }
    common_chat_msg read;
    mapper_of(params.format, read)->from_ast(context.ast, result);
    json calls = json::array();
    for (const auto & call : read.tool_calls) {
        calls.push_back({{"name", call.name}, {"arguments", call.arguments}, {"id", call.id}});
    }
    const size_t end = end_of(context, result, input, params.generation_prompt.size());
    return json{{"reasoning", read.reasoning_content}, {"content", read.content}, {"calls", calls}, {"end", end}};
}

}  // namespace

// llama.cpp's templates call this for strftime_now. The build exports only what begins with aimesh_chat_, so no other library uses it.
extern "C" std::time_t time(std::time_t * result) noexcept {
    std::time_t now = moment;
    if (now == 0) {
        now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    }
    if (result != nullptr) {
        *result = now;
    }
    return now;
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

// In: template, bos, eos. Sets handle to the opened template, which the caller closes; to null if it is not usable.
EXPORTED char * aimesh_chat_open(const char * request, size_t size, common_chat_templates ** handle) {
    *handle = nullptr;
    return answer([&] {
        common_log_set_verbosity_thold(-1);
        const json in        = parsed(request, size);
        auto       templates = opened(text_of(in, "template"), text_of(in, "bos"), text_of(in, "eos"));
        json       reply     = capabilities(templates.get());
        *handle              = templates.release();
        return reply;
    });
}

// In: messages, tools, choice, parallel, thinking, answer, variables, now (seconds since 1970).
EXPORTED char * aimesh_chat_apply(common_chat_templates * handle, const char * request, size_t size) {
    return answer([&] {
        const json in = parsed(request, size);
        moment        = (std::time_t) in.value("now", (int64_t) 0);
        return rendering(common_chat_templates_apply(handle, inputs_of(in)));
    });
}

// In: parser, text. Text that ends early is read as far as it goes; text that can never become an answer is an error.
EXPORTED char * aimesh_chat_parse(const char * request, size_t size) {
    return answer([&] {
        const json in = parsed(request, size);
        return read_answer(text_of(in, "text"), parser_of(text_of(in, "parser")));
    });
}

// Divides a model between the devices, with `margin` bytes free on each. It opens the file without memory for it, so the parameters are
// those of the load to come. Only defaults are changed.
//
// `fit` hands C++ objects to libllama. A compiler with another C++ library than libllama's builds this file without it; then the answer is
// that nothing fits, and the worker keeps its own estimate.
EXPORTED char * aimesh_chat_fit(
    const char * path, const llama_model_params * given, const llama_context_params * context, size_t margin) {
#ifdef AIMESH_WITHOUT_FIT
    (void) path, (void) given, (void) context, (void) margin;
    return answer([] {
        return json{{"fits", false}, {"gpu_layers", 0}, {"tensor_split", json::array()}, {"override_tensor", json::array()}};
    });
#else
    return answer([&] {
        common_log_set_verbosity_thold(-1);
        llama_model_params                            model  = *given;
        llama_context_params                          wanted = *context;
        std::vector<float>                            split(llama_max_devices());
        std::vector<size_t>                           margins(llama_max_devices(), margin);
        std::vector<llama_model_tensor_buft_override> overrides(llama_max_tensor_buft_overrides());
        const auto status = common_fit_params(
            path, &model, &wanted, split.data(), overrides.data(), margins.data(), wanted.n_ctx, nullptr, GGML_LOG_LEVEL_ERROR);
        if (status == COMMON_PARAMS_FIT_STATUS_ERROR) {
            throw std::runtime_error("llama.cpp can't open the model with these parameters");
        }
        json shares = json::array(), listed = json::array();
        for (size_t device = 0; model.tensor_split != nullptr && device < split.size(); device++) {
            shares.push_back(split[device]);
        }
        for (auto * one = model.tensor_buft_overrides; one != nullptr && one->pattern != nullptr; one++) {
            listed.push_back(std::string(one->pattern) + "=" + ggml_backend_buft_name(one->buft));
        }
        return json{
            {"fits", status == COMMON_PARAMS_FIT_STATUS_SUCCESS},
            {"gpu_layers", model.n_gpu_layers},
            {"tensor_split", shares},
            {"override_tensor", listed},
        };
    });
#endif
}

EXPORTED void aimesh_chat_free(char * reply) {
    free(reply);
}
