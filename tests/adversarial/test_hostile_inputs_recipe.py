"""A recipe that would make its reader build, expand or run something."""

import pytest

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Malformed

GOOD = "task: classification\nmethod: lora\ndata: a/b\nbase: a/c\ncolumns: {text: t, label: l}\n"
BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))

ATTACKS = {
    "alias bomb": (BOMB, "recipe.yaml.alias"),
    "anchor": (GOOD + "seed: &x 1\n", "recipe.yaml.alias"),
    "python object": (GOOD + "seed: !!python/object/apply:os.system ['true']\n", "recipe.yaml.tag"),
    "plain tag": (GOOD + "seed: !!int 1\n", "recipe.yaml.tag"),
    "duplicate key": (GOOD + "task: generation\n", "recipe.yaml.duplicate"),
    "merge key": (GOOD + "<<: {seed: 1}\n", "recipe.yaml.key"),
    "complex key": (GOOD + "? [a, b]\n: 1\n", "recipe.yaml.key"),
    "deep nesting": ("a: " + "[" * 5000, "recipe.yaml.size"),
    "many entries": ("a: [" + "1," * 5000 + "]", "recipe.yaml.size"),
    "too large": (GOOD + "#" + "x" * 70_000, "recipe.yaml.size"),
    "not UTF-8": (b"task: \xff\xfe", "recipe.yaml.encoding"),
    "lone surrogate": ("task: \ud800", "recipe.yaml.encoding"),
    "two documents": (GOOD + "---\n" + GOOD, "recipe.yaml.shape"),
    "a list": ("- task\n", "recipe.yaml.shape"),
    "nothing": ("", "recipe.yaml.shape"),
    "broken syntax": ("task: [", "recipe.yaml.syntax"),
    "control characters": ("task: \x07", "recipe.yaml.syntax"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_in_one_sentence(attack):
    source, code = ATTACKS[attack]
    with pytest.raises(Malformed) as caught:
        parse_recipe(source)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


def test_the_good_recipe_itself_is_read():
    assert parse_recipe(GOOD).task == "classification"
