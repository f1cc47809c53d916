"""The architecture, read from the source: imports go downwards, mains are short, docstrings have one form."""

import ast
import itertools
import re

import pytest

from tests.conftest import REPOSITORY

# from the lowest to the highest; a file may import what is lower, and its own folder
ORDER = [
    *("system", "data", "integer", "compression", "models", "evaluation", "deployment", "audit"),
    *("cli", "budget", "training", "stage"),
]
COMMON = sorted((REPOSITORY / "common").rglob("*.py"))
SCRIPTS = sorted(REPOSITORY.glob("*.py"))
STAGES = [path for path in SCRIPTS if path.stem.startswith("train_")]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in COMMON}


def imports_of(path):
    """The modules of this project that a file imports, at the top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def own_imports(path):
    return {name for name in imports_of(path) if name.partition(".")[0] == "common"}


def folder_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", COMMON, ids=module_of)
def test_imports_between_folders_go_downwards(path):
    own = module_of(path)
    if own == "common":
        assert not own_imports(path)
        return
    for name in own_imports(path):
        same_folder = folder_of(name) == folder_of(own)
        assert same_folder or ORDER.index(folder_of(name)) < ORDER.index(folder_of(own)), f"{own} -> {name}"


def test_no_module_imports_itself_through_others():
    graph = {module_of(path): own_imports(path) - {module_of(path)} for path in COMMON}

    def reachable(start):
        seen, waiting = set(), [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    assert [name for name in graph if name in reachable(name)] == []


def test_the_library_imports_no_script():
    scripts = {path.stem for path in SCRIPTS}
    assert len(scripts) == 9
    for path in COMMON:
        assert not scripts & {name.partition(".")[0] for name in imports_of(path)}, path


def test_folders_are_in_the_order_and_the_tests_mirror_them():
    folders = {path.parent.name for path in COMMON} - {"common"}
    assert folders == set(ORDER) - {"stage"}
    for folder in folders:
        assert list((REPOSITORY / "tests" / folder).glob("test_*.py")), folder


@pytest.mark.parametrize("path", STAGES, ids=module_of)
def test_a_stage_is_short_and_shows_its_technique_first(path):
    functions = {node.name: node for node in tree_of(path).body if isinstance(node, ast.FunctionDef)}
    main = functions["main"]
    lines = path.read_text().splitlines()
    imports = [node for node in ast.walk(main) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert main.end_lineno - main.lineno < 50 and len(imports) <= 5
    assert main.lineno < 20 and next(iter(functions)) == "main"  # on the first screen
    assert len(lines) <= 150


@pytest.mark.parametrize("path", [*SCRIPTS, *COMMON], ids=module_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 280
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            docstring = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno - docstring < 50, f"{path.name}: {node.name}"


def public_functions():
    for path in COMMON:
        for node in tree_of(path).body:
            inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
            for function in inside:
                if isinstance(function, ast.FunctionDef) and re.match(r"[a-z]|__init__", function.name):
                    yield path, function


def sections(docstring):
    """The parts of a docstring: its text under "", and below each of Args, Returns, Yields and Raises."""
    parts = re.split(r"^(Args|Returns|Yields|Raises):$", docstring, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def faults_of(function):
    """What the docstring of a function lacks."""
    arguments = function.args
    names = [each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    names = [name for name in names if name not in ("self", "cls")]
    found = sections(ast.get_docstring(function) or "")
    if not found[""]:
        return "no docstring"
    documented = re.findall(r"^    (\*{0,2}\w+): ", found.get("Args", ""), flags=re.MULTILINE)
    if sorted(documented) != sorted(names):
        return f"Args: {sorted(set(documented) ^ set(names))}"
    decorators = {ast.unparse(each) for each in function.decorator_list}
    returns = function.returns and ast.unparse(function.returns)
    returns_nothing = returns in (None, "None", "Iterator[None]") or "property" in decorators or not names
    if not (returns_nothing or "Yields" in found or "Returns" in found):
        return "Returns"
    statements = [node for node in function.body if not isinstance(node, ast.FunctionDef)]
    raised = {
        ast.unparse(node.exc).partition("(")[0].rpartition(".")[2]
        for node in itertools.chain.from_iterable(map(ast.walk, statements))
        if isinstance(node, ast.Raise) and node.exc
    }
    errors = re.findall(r"^    (\w+): ", found.get("Raises", ""), flags=re.MULTILINE)
    missing = {name for name in raised if name[0].isupper()} - set(errors)
    return f"Raises: {missing}" if missing else None


def test_public_docstrings_have_one_form():
    functions = list(public_functions())
    faults = {
        f"{path.name}:{function.lineno} {function.name}": faults_of(function) for path, function in functions
    }
    assert len(functions) > 150 and {name: fault for name, fault in faults.items() if fault} == {}
