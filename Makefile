# One environment in .venv, made from requirements.lock by uv. Every recipe works in a path with spaces.
PY := .venv/bin/python
STAMP := .venv/.made-from-lock

.PHONY: run test lab app bench setup lock refresh encoder appbundle

setup: $(STAMP)

.uv/bin/uv:
	@command -v uv >/dev/null 2>&1 || { python3 -m venv .uv && .uv/bin/python -m pip -q install uv; }
	@test -x .uv/bin/uv || { mkdir -p .uv/bin && ln -sf "$$(command -v uv)" .uv/bin/uv; }

$(STAMP): requirements.lock pyproject.toml | .uv/bin/uv
	.uv/bin/uv venv -q --allow-existing --python 3.11 .venv
	VIRTUAL_ENV=.venv .uv/bin/uv pip sync -q requirements.lock
	VIRTUAL_ENV=.venv .uv/bin/uv pip install -q --no-deps --editable .
	@touch $(STAMP)

run: $(STAMP)
	@$(PY) -m helpers run

# Two processes of one thread each are quicker than one of two; a file's tests stay together.
test: $(STAMP)
	@OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

lab: $(STAMP)
	@$(PY) -m jupyterlab --notebook-dir notebooks

app: $(STAMP)
	@$(PY) -m streamlit run helpers/app_page.py --server.address localhost --server.maxUploadSize 200 --browser.gatherUsageStats false

bench: $(STAMP)
	@$(PY) -m benchmarks

# Trains the bundled encoder anew, in about ten minutes; its weights lie in data/encoders/.
encoder: $(STAMP)
	@$(PY) -m helpers.encoder_training

# Makes what the page of `make app` opens with anew, in a few minutes; it lies in data/app/.
appbundle: $(STAMP)
	@$(PY) -m helpers.app_bundle

refresh: $(STAMP)
	@$(PY) -m helpers refresh

# uv.lock names the registry it was resolved from, so only the exported list is kept.
lock: | .uv/bin/uv
	.uv/bin/uv lock -q --upgrade --python 3.11
	.uv/bin/uv export -q --format requirements-txt --no-hashes --no-emit-project --all-extras \
	  --no-annotate --no-header -o requirements.lock > /dev/null
	@rm -f uv.lock
