# One environment in .venv, made from requirements.lock by uv. Every recipe works in a path with spaces.
PY := .venv/bin/python
# LIGHT=1 leaves out the heavy libraries of notebook 10 and of clusters; the choice is remembered until LIGHT=0.
LIGHT ?= $(if $(wildcard .venv/.light),1,0)
LOCK := $(if $(filter 1,$(LIGHT)),requirements-light.lock,requirements.lock)
STAMP := .venv/.made-from-$(LOCK)
PROSEG := 3.2.0

.PHONY: run test slurm lab app bench setup lock refresh encoder appbundle stardist proseg

setup: $(STAMP)

.uv/bin/uv:
	@command -v uv >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip -q install uv; }
	@test -x .uv/bin/uv || { mkdir -p .uv/bin && ln -sf "$$(command -v uv)" .uv/bin/uv; }

$(STAMP): $(LOCK) pyproject.toml | .uv/bin/uv
	.uv/bin/uv venv -q --allow-existing --python 3.11 .venv
	VIRTUAL_ENV=.venv .uv/bin/uv pip sync -q $(LOCK)
	VIRTUAL_ENV=.venv .uv/bin/uv pip install -q --no-deps --editable .
	@rm -f .venv/.light .venv/.made-from-*; if [ "$(LIGHT)" = 1 ]; then touch .venv/.light; fi; touch $(STAMP)

# The one program of notebook 10 that is not Python. Needs Rust (cargo) and its registry; takes some minutes.
proseg: $(STAMP)
	@if .venv/bin/proseg --version 2>/dev/null | grep -qx "proseg $(PROSEG)"; then echo "proseg $(PROSEG) is there"; \
	elif ! command -v cargo >/dev/null 2>&1; then \
	  echo "no cargo: install Rust first, or proseg with conda; notebook 10 runs without it" >&2; exit 1; \
	else CARGO_NET_RETRY=1 CARGO_HTTP_TIMEOUT=10 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=true \
	  cargo install -q --locked --version $(PROSEG) --root .venv --bin proseg proseg && echo "proseg $(PROSEG) is built"; fi

run: $(STAMP)
	@$(PY) -m helpers run

# Two processes of one thread each are quicker than one of two; a file's tests stay together.
test: $(STAMP)
	@OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

# The batch engine on a real SLURM of this machine (Debian: slurm-wlm, munge; root); skipped where there is none.
slurm: $(STAMP)
	@$(PY) -m pytest -rs tests/batch

lab: $(STAMP)
	@$(PY) -m jupyterlab --notebook-dir notebooks

app: $(STAMP)
	@$(PY) -m streamlit run helpers/app_page.py --server.address localhost --server.maxUploadSize 200 --browser.gatherUsageStats false

bench: $(STAMP)
	@$(PY) -m benchmarks

# Trains the bundled encoder anew, in about ten minutes; its weights lie in data/encoders/.
encoder: $(STAMP)
	@$(PY) -m helpers.encoder_training

# Trains the small StarDist of notebook 10 anew; its weights lie in data/stardist/.
stardist: $(STAMP)
	@$(PY) -m helpers.hd_training

# Makes what the page of `make app` opens with anew, in a few minutes; it lies in data/app/.
appbundle: $(STAMP)
	@$(PY) -m helpers.app_bundle

refresh: $(STAMP)
	@$(PY) -m helpers refresh

# uv.lock names the registry it was resolved from, so only the exported lists are kept; the light one is a part of the same resolution.
lock: | .uv/bin/uv
	.uv/bin/uv lock -q --upgrade --python 3.11
	.uv/bin/uv export -q --format requirements-txt --no-hashes --no-emit-project --all-extras \
	  --no-annotate --no-header -o requirements.lock > /dev/null
	.uv/bin/uv export -q --format requirements-txt --no-hashes --no-emit-project --extra reference --extra app --extra dev \
	  --no-annotate --no-header -o requirements-light.lock > /dev/null
	@rm -f uv.lock
