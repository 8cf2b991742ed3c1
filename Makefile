# Every target sets up .venv by itself; nothing has to be typed before.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Its workers hold leases of a few seconds, which expire where other tests slow the machine.
ALONE := tests/system/test_study_kills.py
# CIFAR-10's official pixels, where they lie in a folder of their own beside another copy.
ifneq ($(and $(DIFFVIT_DATA),$(wildcard $(DIFFVIT_DATA)/official/cifar10)),)
override export DIFFVIT_DATA := $(DIFFVIT_DATA)/official
endif

.PHONY: demo app app-load screenshot test test-system check types style docs bench attribution-study clip-cifar10 clip-efficientnet studies clip-published clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
# Compiled on all cores, while pip compiles on one. Files for a younger Python fail, harmlessly.
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

demo: $(READY)  ## train a ViT and its differential twin, then compare them (about five minutes on two cores)
	$(BIN)/python -m tools.demo configs

test: $(READY)  ## the whole quick suite, one worker per core
	$(BIN)/python -m pytest -q -n auto --dist worksteal --ignore tests/system

test-system: $(READY)  ## long runs, kills, the browser, one worker per core; then those that need a quiet machine
	$(BIN)/python -m pytest -q -n auto --dist loadfile tests/system --ignore $(ALONE) -m system --timeout 900 --durations 12
	$(BIN)/python -m pytest -q $(ALONE) -m system --timeout 900

check: $(READY)  ## style, types, import contracts, sizes, generated documents
	$(MAKE) --no-print-directory -j 2 types style

types: $(READY)
	$(BIN)/pyright

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.sizes
	$(BIN)/python -m tools --check

docs: $(READY)  ## write every generated document: README's results, recipes' expected lines, docs/results.md, reports
	$(BIN)/python -m tools

app: $(READY)  ## the explorer: a page on this machine to look inside models
	$(BIN)/diffvit app

app-load: $(READY)  ## reports/app-load: the explorer under fifty visitors at a time (one minute, run nothing beside it)
	$(BIN)/python -m benchmarks.app_load

screenshot: $(READY)  ## docs/explorer.png, as the README shows it, and the slider's latency (needs Debian's chromium)
	$(BIN)/python -m benchmarks.screenshot docs/explorer.png

bench: $(READY)  ## speed beside timm, vit-pytorch and transformers (under ten minutes on two idle cores)
	$(BIN)/diffvit bench train
	$(BIN)/diffvit bench inference --no-memory
	$(BIN)/diffvit bench attention

attribution-study: $(READY)  ## reports/attribution: 25 models explained by ten methods (about seven hours of two cores, resumable)
	$(BIN)/diffvit study run attribution --workers 2
	$(BIN)/diffvit study report attribution
	$(BIN)/python -m tools attribution

# A run that is there is taken up where it stopped; a complete one is left as it is.
clip-cifar10: $(READY)  ## reports/clip-cifar10: a small CLIP and its supervised twin, trained and compared
	$(BIN)/diffvit clip train configs/clip_cifar10.yaml $(if $(wildcard runs/clip-cifar10),--resume,--out) runs/clip-cifar10
	$(BIN)/diffvit train configs/clip_cifar10_twin.yaml $(if $(wildcard runs/clip-cifar10-twin),--resume,--out) runs/clip-cifar10-twin
	$(BIN)/diffvit compare runs/clip-cifar10 runs/clip-cifar10-twin --out reports/clip-cifar10
	$(BIN)/diffvit clip compare cifar10 --model cifar10-clip --supervised cifar10-clip-twin --shift-pictures 10000 \
	  --out reports/clip-cifar10/compare
	$(BIN)/python -m tools.clip runs/clip-cifar10
	$(BIN)/python -m tools clip

STUDIES ?= vit-vs-diffvit position augmentation width depth mlp-ratio heads pooling head optimizer initialisation search patch-size
studies: $(READY)  ## every study at tier short, its report, docs/results.md (about ten hours of two cores, resumable; STUDIES=names)
	for name in $(STUDIES); do \
	  $(BIN)/diffvit study run $$name --tier short --workers 2 && $(BIN)/diffvit study report $$name --tier short || exit 1; \
	done
	$(BIN)/python -m tools results

EFFICIENTNET = --model cifar10-clip --supervised timm:tf_efficientnet_lite0 --supervised-weights "$(WEIGHTS)"
clip-efficientnet: $(READY)  ## reports/clip-efficientnet: a classifier of ImageNet; PHOTOS=folder by WordNet ids, WEIGHTS=file
	test -n "$(PHOTOS)" -a -n "$(WEIGHTS)" || { echo "say where both lie: make clip-efficientnet PHOTOS=folder WEIGHTS=file" >&2; exit 2; }
	$(BIN)/diffvit clip compare "$(PHOTOS)" $(EFFICIENTNET) --shift-pictures 1000 --out reports/clip-efficientnet/photos
	$(BIN)/diffvit clip compare cifar10 $(EFFICIENTNET) --out reports/clip-efficientnet/cifar10
	$(BIN)/diffvit clip evaluate cifar10 $(EFFICIENTNET) --tasks linear-probe --out reports/clip-efficientnet/probe
	$(BIN)/python -m tools clip

clip-published: $(READY)  ## reports/clip-published: all that needs published weights; IMAGENET=folder of its validation pictures
	test -n "$(IMAGENET)" || { echo "say where ImageNet's validation pictures lie: make clip-published IMAGENET=folder" >&2; exit 2; }
	$(BIN)/diffvit clip published "$(IMAGENET)" $(PUBLISHED)
	$(BIN)/python -m tools clip

clean:
	rm -rf .venv build dist src/*.egg-info
