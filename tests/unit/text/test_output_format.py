"""The chat template alone says how a model writes its calls and thoughts."""

import pytest

from penstock.text.output_format import infer_format


@pytest.mark.parametrize(
    "template, name, think_begin",
    [
        ("{{ messages }}", "generic", ""),
        ("<tool_call>\\n{{ tool_call.arguments }}\\n</tool_call>", "hermes", ""),
        ("<tool_call></tool_call> content.split('</think>')", "hermes", "<think>"),
        ("content.split('</think>') <｜Assistant｜>", "generic", "<think>"),
        ("<｜tool▁calls▁begin｜> </think>", "deepseek", "<think>"),
        ('Respond in the format {"name": function name, "parameters": dictionary}', "llama3", ""),
        ("<|python_tag|>", "llama3", ""),
        ("[TOOL_CALLS]", "mistral", ""),
        ("[TOOL_CALLS] [THINK] [/THINK]", "mistral", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "harmony", ""),
        ("<|tool_call|>{{ call }}<|tool_call_end|>", "penstock", ""),
    ],
)
def test_the_marks_of_a_template_name_its_format(template: str, name: str, think_begin: str) -> None:
    found = infer_format(template)

    assert (found.name, found.think_begin) == (name, think_begin)
