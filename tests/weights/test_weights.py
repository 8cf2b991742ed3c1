import diffvit
from diffvit import weights
from diffvit.clip.small.load import load_small


def test_every_packaged_model_is_what_the_registry_says():
    files = {path.name for path in weights.FOLDER.glob("*.safetensors")}
    assert files == {entry["file"] for entry in weights.registry().values()}
    assert weights.names() == sorted(weights.registry())
    assert weights.packaged("no-such-model") is None
    for name, entry in weights.registry().items():
        path = weights.packaged(name)
        assert path.stat().st_size < 4_000_000
        assert entry["sha256"] in (weights.FOLDER / entry["card"]).read_text(encoding="utf-8")
        model = load_small(name).model if name == "cifar10-clip" else diffvit.load(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
