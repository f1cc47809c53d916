"""Any text as the value of an option, as a config or as a name: accepted, or refused in one line."""

import contextlib
import io

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import train_pruning
import train_quantization
import train_student
import train_teacher
from common.cli.parser import Parser
from common.models import checkpoint, lineage

SCRIPTS = {
    train_teacher: ["--teacher", "resnet18"],
    train_student: ["--teacher", "a", "--student", "b"],
    train_pruning: ["--weights", "a"],
    train_quantization: ["--weights", "a"],
}
QUICK = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def parsed(script, arguments):
    """The options, or None if the arguments were refused, which must be in one line."""
    error, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
        try:
            return script.parse_args(arguments)
        except SystemExit as stop:
            if stop.code:  # --help ends with 0
                assert stop.code == 2 and error.getvalue().count("\n") == 1, error.getvalue()
                assert ": error: " in error.getvalue()
            return None


def option_names(script):
    seen = []

    def note(self, _):
        seen.extend(self._option_string_actions)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(Parser, "parse_args", note)
        script.parse_args([])
    return sorted(seen)


@QUICK
@given(st.data())
def test_any_value_of_any_option_is_accepted_or_refused_in_one_line(data):
    script = data.draw(st.sampled_from(list(SCRIPTS)))
    option = data.draw(st.sampled_from(option_names(script)))
    value = data.draw(st.one_of(st.text(), st.floats().map(str), st.integers().map(str)))
    parsed(script, [*SCRIPTS[script], f"{option}={value}"])


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates())


@QUICK
@given(st.data())
@example(None)
def test_any_config_is_accepted_or_refused_in_one_line(tmp_path, data):
    path = tmp_path / "config.yaml"
    script = train_teacher
    if data is None:
        text = "epochs: 2001-99-99"
    else:
        script = data.draw(st.sampled_from(list(SCRIPTS)))
        names = st.one_of(st.text(), st.sampled_from([name[2:] for name in option_names(script)]))
        values = st.recursive(
            PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4
        )
        mapping = st.dictionaries(names, values, max_size=4).map(
            lambda given: yaml.safe_dump(given, allow_unicode=True)
        )
        text = data.draw(st.one_of(st.text(), mapping))
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    parsed(script, [*SCRIPTS[script], "--config", str(path)])


@QUICK
@given(st.text(), st.sampled_from(["teacher", "kd", "pruned", "quantized"]))
@example("x" * 300, "quantized")
def test_any_model_name_that_is_accepted_can_be_part_of_a_file_name(tmp_path, name, stage):
    args = parsed(train_teacher, ["--teacher", "x", f"--model-name={name}"])
    if args is not None:
        created = lineage.next_name(stage, "kd_resnet18", args.model_name)
        path = tmp_path / f"{created}_0.5000.pt"
        path.touch()
        assert path.parent == tmp_path and checkpoint.find(created, tmp_path) == path
        path.unlink()
