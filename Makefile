# Trivec: `make run` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup run test test-slow test-peers test-clients clients lint bench bench-encode bench-search bench-serve docs image peers clean

help:
	@echo "make run         set up and start the server on the bundled checkpoint"
	@echo "make test        linters, types and tests (what CI runs)"
	@echo "make test-slow   the full-size parity and crash tests: minutes, 8 GB of memory"
	@echo "make test-peers  parity with FlagEmbedding itself (installs it into .venv-peers)"
	@echo "make test-clients  the client libraries that README names against a running server (installs them into .venv-clients)"
	@echo "make bench       the committed benchmarks: retrieval quality over HTTP, full-size parity"
	@echo "make bench-encode  Trivec beside FlagEmbedding, ONNX Runtime and others on the same texts; memory, starts (an hour)"
	@echo "make bench-search  Trivec's index beside other indexes, up to a million documents (an hour, 40 GB of disk)"
	@echo "make bench-serve the server under load over HTTP, beside the library, FlagEmbedding behind FastAPI and Infinity (two hours)"
	@echo "make lint        ruff and mypy alone"
	@echo "make image       the Docker image (IMAGE_ARGS='--build-arg TENSORFLOW=tensorflow[and-cuda]' for GPUs)"

# The virtual environment: what the server needs, and on top of it what tests need.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
		f"Trivec needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.11 run")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run constraints-dev.txt
	$(PIP) -c constraints.txt -c constraints-dev.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.run

run: setup
	@$(BIN)/trivec serve

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow and not peers and not clients"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -s

peers: .venv-peers/.done
.venv-peers/.done: pyproject.toml constraints-peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-peers.txt
	@touch $@

test-peers: $(VENV)/.dev peers
	$(BIN)/python -m pytest -m peers

clients: .venv-clients/.done
.venv-clients/.done: constraints-clients.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-clients.txt
	@touch $@

# The clients in their environment, the server in its own: neither bends the versions of the other.
test-clients: $(VENV)/.dev clients
	TRIVEC_TEST_SERVER_PYTHON=$(CURDIR)/$(BIN)/python .venv-clients/bin/python -m pytest -m clients tests/clients

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.full_size

# Trivec beside the reference and ONNX Runtime on the same texts, full-size random weights.
BENCH_FOLDER ?= /var/tmp/trivec/full
ENCODE = $(BIN)/python -m benchmarks.encode --tune-texts 8 --pairs 3 --folder $(BENCH_FOLDER)
bench-encode: $(VENV)/.dev peers .venv-onnx/.done
	$(ENCODE) --sides trivec-int8,flagembedding,onnx-int8 --workloads queries,passages --counts 1,8,64 --out encode
	$(ENCODE) --sides trivec-float32,flagembedding --workloads passages --counts 16 --out encode_float32
	$(ENCODE) --sides trivec-int8,trivec-float32,flagembedding,onnx-int8 --workloads long --counts 1 --out encode_long
	$(ENCODE) --sides trivec-int8,trivec-float32,torch,onnx-float32,openvino-float32,flagembedding-default \
		--workloads passages --counts 8 --out encode_passages
	$(BIN)/python -m benchmarks.plot $(addprefix benchmarks/results/,encode.json encode_long.json encode_passages.json encode.svg)
	$(BIN)/python -m benchmarks.footprint --folder $(BENCH_FOLDER) --out footprint

# The server under load, full-size random weights, beside the library and other servers of the same model.
SERVE = TRIVEC_PEERS_PYTHON=.venv-peers/bin/python TRIVEC_INFINITY_PYTHON=.venv-infinity/bin/python \
	$(BIN)/python -m benchmarks.serve --folder $(BENCH_FOLDER)
bench-serve: $(VENV)/.dev peers .venv-infinity/.done
	$(SERVE) --parts throughput,lanes,overload --engines int8 --out serve
	$(SERVE) --parts peers --peers flagembedding,flagembedding-locked,infinity --texts-a-request 1 --out serve_peers
	$(SERVE) --parts soak --engines int8 --minutes 30 --out serve_soak

.venv-infinity/.done: constraints-infinity.txt
	test -x .venv-infinity/bin/python || $(PYTHON) -m venv .venv-infinity
	.venv-infinity/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-infinity.txt
	@touch $@

# Trivec's index beside scipy, bm25s, Seismic, FAISS, Qdrant, LanceDB and Milvus Lite on the same synthetic documents.
SEARCH = TRIVEC_SEARCH_PYTHON=.venv-search/bin/python $(BIN)/python -m benchmarks.search
bench-search: $(VENV)/.dev .venv-search/.done
	$(SEARCH) --documents 2000 --parts hybrid,maxsim --peers numpy,qdrant,lancedb,milvus-lite --out search_2k
	$(SEARCH) --documents 100000 --parts lexical,dense --peers scipy,bm25s,seismic,faiss-flat,faiss-hnsw --out search_100k
	$(SEARCH) --documents 1000000 --parts lexical --peers scipy,bm25s --truth 0 --out search_1m_lexical
	$(SEARCH) --documents 1000000 --parts dense --peers none --truth 100 --out search_1m_dense
	$(SEARCH) --documents 1000000 --parts hybrid,filters,ingest,memory --peers none \
		--set rows=codes --set colbert=1bit --truth 0 --out search_1m

.venv-search/.done: constraints-search.txt
	test -x .venv-search/bin/python || $(PYTHON) -m venv .venv-search
	.venv-search/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-search.txt
	@touch $@

.venv-onnx/.done: constraints-onnx.txt
	test -x .venv-onnx/bin/python || $(PYTHON) -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-onnx.txt
	@touch $@

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_docs.py

image:
	docker build $(IMAGE_ARGS) -t trivec .

clean:
	rm -rf $(VENV) .venv-peers .venv-clients .venv-onnx .venv-infinity .pytest_cache .mypy_cache .ruff_cache .hypothesis
