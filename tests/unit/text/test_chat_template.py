import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import InvalidRequestError, ModelLoadError, PenstockError
from penstock.text.chat_template import ChatTemplate, load_chat_template

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "chat_templates"
CASES = sorted(path.stem for path in TEMPLATES.glob("*.json"))
MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: Any = MESSAGES, **values: Any) -> str:
    values.setdefault("add_generation_prompt", False)
    return ChatTemplate(source, {}).render(messages, **values)


def refusal(source: str, messages: Any = MESSAGES, **values: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        render(source, messages, **values)

    assert "\n" not in str(caught.value)
    assert caught.value.param == "messages"
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_a_template_renders_what_the_ecosystem_renders(name: str) -> None:
    case = json.loads((TEMPLATES / f"{name}.json").read_text())
    source = (TEMPLATES / f"{name}.jinja").read_bytes().decode()
    now = datetime.datetime.fromisoformat(case.get("now", "2000-01-01T00:00:00"))
    template = ChatTemplate(source, {}, clock=lambda: now)
    values = {"add_generation_prompt": False, **case.get("kwargs", {})}
    if "expected" in case:
        assert template.render(case["messages"], tools=case.get("tools"), **values) == case["expected"]
    else:
        with pytest.raises(InvalidRequestError) as caught:
            template.render(case["messages"], tools=case.get("tools"), **values)

        assert case["raises"] in str(caught.value)


def test_one_template_renders_many_conversations_alike() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}", {})
    one, two = [{"content": "a"}], [{"content": "b"}, {"content": "c"}]

    assert [template.render(m) for m in (one, two, one)] == ["[a]", "[b][c]", "[a]"]


def test_the_special_tokens_of_the_checkpoint_are_known_and_can_be_overridden() -> None:
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}", {"bos_token": "<s>", "eos_token": "</s>"})

    assert template.render(MESSAGES) == "<s></s>"
    assert template.render(MESSAGES, eos_token="<e>") == "<s><e>"


def test_what_is_set_inside_a_generation_block_stays_inside() -> None:
    assert render("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}") == "21"


def test_a_filter_that_gives_a_generator_in_jinja_can_be_walked_once_and_is_true_when_empty() -> None:
    source = (
        "{% set users = messages | selectattr('role', 'eq', 'nobody') %}{{ 'true' if users else 'false' }}"
        "{% set all = messages | map(attribute='role') %}"
        "{% for r in all %}{{ r }}{% endfor %}{% for r in all %}{{ r }}{% endfor %}"
    )

    assert render(source) == "trueuser"


def test_a_chain_of_lazy_filters_does_not_grow_deep() -> None:
    """Nested generators would end in a RecursionError, or in the stack when they are thrown away."""
    source = (
        "{% set ns = namespace(g=[1]) %}"
        "{% for i in range(5000) %}{% set ns.g = ns.g | map('string') %}{% endfor %}{{ ns.g | list }}"
    )

    assert render(source) == "['1']"


BUSY = """
{%- set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- set is_answer = m.content.startswith('<tool>') and m.content.endswith('</tool>') %}
    {%- if ns.searching and m.role == 'user' and not is_answer %}
        {%- set ns.searching = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.content is string %}{% set content = m.content %}{% else %}{% set content = '' %}{% endif %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thoughts %}
            {{- '<|im_start|>' ~ m.role ~ '\\n<think>' ~ thoughts.strip() ~ '</think>' ~ content }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {%- for call in m.calls or [] %}{{ call.arguments | tojson }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""


@pytest.mark.parametrize(("turns", "words"), [(8000, 15), (10, 18_000)])
def test_a_long_honest_conversation_is_within_the_budget(turns: int, words: int) -> None:
    said = "word " * words
    turn = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "<think>x</think>" + said, "calls": [{"arguments": {"a": [1, 2]}}]},
    ]
    text = render(BUSY, turn * (turns // 2))

    assert text.count(said) == turns
    assert text.count('{"a": [1, 2]}') == turns // 2


def test_a_text_over_a_mebibyte_is_stopped_and_says_so() -> None:
    error = refusal(
        "{% for i in range(9) %}{{ messages[0].content }}{% endfor %}", [{"content": "x" * 200_000}]
    )

    assert error.code == "template_limit"


@pytest.mark.parametrize(
    "expression",
    [
        "'%*d' % (999999999, 1)",
        "'%.*f' % (999999999, 1.0)",
        "('%99999d' * 20) % ((1,) * 20)",
        "'{:{}}'.format(1, 999999999)",
        "('{0}' * 10000).format('a' * 10000)",
        "('%(a)s' * 10000) % {'a': 'a' * 10000}",
        "('a' * 100000) | replace('', 'b' * 100)",
        "('a' * 100000).replace('', 'b' * 100)",
        "([[]] * 100000) | join('x' * 1000)",
        "'ab'.ljust(99999999)",
        "'a' | indent('x' * 999999, true) | indent('x' * 999999, true)",
        "[1] | slice(99999999) | list | length",
        "range(100000) | sum(start='')",
        "1 | round(999999999)",
        "messages | map(attribute='a.' * 1000) | list",
        "[[[1]]] | tojson(indent=65)",
        "((9 ** 99) ** 99) ** 99",
        "0x" + "f" * 9000,
    ],
)
def test_an_operation_out_of_proportion_is_stopped_before_it_happens(expression: str) -> None:
    with pytest.raises(PenstockError, match=r"stopped|digits|bits"):
        render("{{ " + expression + " }}")


@pytest.mark.parametrize(
    "expression",
    [
        "'a'.encode()",
        "'a'.translate({97: 'b' * 1000000})",
        "(5).to_bytes(1000000000, 'big')",
        "messages.append(1)",
        "messages[0].update({})",
        "messages[0].pop('role')",
        "''.__class__.__mro__",
        "messages.__len__()",
        "raise_exception.__globals__.x",
        "(messages | map('string')).gi_frame.f_globals",
    ],
)
def test_what_no_template_needs_is_out_of_reach_and_changes_nothing(expression: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    refusal("{{ " + expression + " }}", messages)

    assert messages == MESSAGES


def test_an_error_of_a_template_is_one_short_line() -> None:
    assert "first" in str(refusal("{{ raise_exception('first\\nsecond') }}"))
    assert len(str(refusal("{{ raise_exception('x' * 100000) }}"))) < 500
    assert "division" in str(refusal("{{ 1 / 0 }}"))


def test_messages_that_are_no_data_are_refused_not_printed_by_tojson() -> None:
    refusal("{{ messages | tojson }}", [{"content": object()}])


def write(folder: Path, config: dict[str, Any], file: bytes | None = None) -> dict[str, Any]:
    if file is not None:
        (folder / "chat_template.jinja").write_bytes(file)
    return config


def test_a_checkpoint_without_a_template_has_none(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path, {}) is None
    assert load_chat_template(tmp_path, {"chat_template": None}) is None
    assert load_chat_template(tmp_path, {"chat_template": [{"name": "rag", "template": "x"}]}) is None


def test_the_file_goes_before_the_config_and_specials_come_from_the_config(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        {"chat_template": "old", "bos_token": {"content": "<s>"}, "cls_token": "<c>", "pad_token": None},
        b"new {{ bos_token }}{{ cls_token }}{{ pad_token }}",
    )
    template = load_chat_template(tmp_path, config)

    assert template is not None
    assert template.render(MESSAGES) == "new <s><c>"


def test_named_templates_are_chosen_by_use(tmp_path: Path) -> None:
    named = {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    plain, tools = load_chat_template(tmp_path, named), load_chat_template(tmp_path, named, for_tools=True)

    assert plain is not None
    assert tools is not None
    assert (plain.source, tools.source) == ("d", "t")


@pytest.mark.parametrize(
    ("config", "file"),
    [
        ({"chat_template": 3}, None),
        ({"chat_template": "{% for %}"}, None),
        ({"chat_template": "{{ 'x' | frobnicate }}"}, None),
        ({"chat_template": "x" * 300_000}, None),
        ({"chat_template": "{{ [[[[[[[[[x]]]]]]]]] }}" * 2_500}, None),
        ({}, b"\xff\xfe{{"),
    ],
)
def test_a_broken_template_is_refused_with_its_code(
    tmp_path: Path, config: dict[str, Any], file: bytes | None
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_chat_template(tmp_path, write(tmp_path, config, file))

    assert caught.value.code == "bad_template"
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_a_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(ModelLoadError) as caught:
        load_chat_template(tmp_path, {})

    assert caught.value.code == "bad_template"
