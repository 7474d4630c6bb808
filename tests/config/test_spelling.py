"""Short forms of overrides, and non-ASCII letters, which Hydra's grammar accepts only in quotes."""

import pytest

from pdp.config.arguments import parse, spell_out
from pdp.config.compose import compose
from pdp.errors import Refusal


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root=Müllers Fotos/größe", "Müllers Fotos/größe"),
        ("data.root=写真", "写真"),
        ("data.root='Müller, Söhne'", "Müller, Söhne"),
        ("data.root=Fotos (größer)", "Fotos (größer)"),
        ("data.text=[größe, alter]", ["größe", "alter"]),
        ("data.root=my photos", "my photos"),
    ],
)
def test_letters_beyond_ascii_need_no_quotes(word, value):
    assert parse([word])[0].value == value


def test_short_ways_are_what_they_mean():
    assert [one.text for one in parse(["model=a.b:Net"])] == ["model=import", 'model.name="a.b.Net"']
    assert [(one.key, one.value) for one in parse(["from=results/x"])] == [("start.run", "results/x")]
    assert [one.text for one in parse(["model=resnet20"])] == ["model=resnet20"]
    words = ["model=a.B,c:D", "from=x,y", "seed=0,1"]
    assert spell_out(words) == ["model=import", "model.name=a.B,c.D", "start.run=x,y", "seed=0,1"]
    with pytest.raises(Refusal, match="in two"):
        spell_out(["model=resnet20,c.D"])
    with pytest.raises(Refusal, match="two spellings"):
        parse(["from=x", "start.run=y"])
    config = compose(["model=mypackage.models.MyNet", "sparsity=0.5"])
    assert (config.model.library, config.model.name, config.data.name) == ("import", "mypackage.models.MyNet", "digits")
