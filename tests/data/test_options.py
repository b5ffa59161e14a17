import subprocess
import sys

import pytest

from spkd.data.options import DataOptions
from spkd.errors import InputError


def test_defaults_are_the_embedded_digits():
    assert DataOptions().data == "digits"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 1),
        ("image_size", -3),
        ("image_size", 4097),
        ("workers", -1),
        ("data", ""),
        ("train_images", 1),
        ("augment", "Trivial"),
    ],
)
def test_impossible_values_name_the_option(field, value):
    with pytest.raises(InputError, match=rf"^{field}: expected [^\n]+$"):
        DataOptions(**{field: value})


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("(patient", "missing ), unterminated subpattern at position 0"),
        ("a{99999999999999999999}", "the repetition number is too large"),
        ("*.png", "nothing to repeat at position 0"),
    ],
)
def test_what_is_no_regular_expression_is_told_with_its_fault(expression, fault):
    with pytest.raises(InputError) as caught:
        DataOptions(groups=expression)
    assert str(caught.value) == f"groups: expected a regular expression, got {expression!r}: {fault}"


def test_sizes_at_the_limits_are_taken():
    assert [DataOptions(image_size=size).image_size for size in (2, 4096, None)] == [2, 4096, None]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("spkd.data.options", ["torch", "numpy", "PIL"]),
        ("spkd.data.load, spkd.data.stream", ["sklearn", "torchvision", "scipy"]),
    ],
)
def test_imports_are_light(module, heavy):
    check = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
