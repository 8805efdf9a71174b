# SPDX-License-Identifier: Apache-2.0
#
#   make demo    install what is missing, build, and show everything once
#   make test    all tests, end to end with a real QEMU included
#   make build   bin/coffer and build/guest
#   make bench   the figures, as name: value lines
#   make lint    vet and linters
#
# Everything is made below bin/ and build/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false

CACHE    := build/cache
KERNEL   ?= $(CACHE)/kernel
E2FS     ?= $(CACHE)/e2fs
GUEST    := build/guest

# Go knows best what has changed; it is asked each time and answers quickly.
.PHONY: all build coffer agent runc guest demo test unit e2e bench lint deps images clean

all: build

build: coffer guest

coffer:
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/coffer ./cmd/coffer

# The guest's binaries carry no version, so that the image's digest changes
# only when its content does.
agent:
	$(GOBUILD) -ldflags '-s -w' -o build/coffer-guest ./cmd/coffer-guest

# runc is pinned by a module of its own; cgo for its namespace code and seccomp.
runc: build/runc
build/runc: guest/runc/go.mod guest/runc/go.sum
	cd guest/runc && CGO_ENABLED=1 $(GO) build -trimpath -buildvcs=false \
	  -tags 'seccomp netgo osusergo static_build urfave_cli_no_docs' -ldflags '-s -w -extldflags -static' \
	  -o ../../build/runc github.com/opencontainers/runc

guest: coffer agent build/runc
	scripts/fetch-kernel $(KERNEL)
	scripts/fetch-e2fs $(E2FS) >/dev/null
	bin/coffer guest build --kernel-dir $(KERNEL) --e2fs-dir $(E2FS) \
	  --agent build/coffer-guest --runc build/runc --out $(GUEST)

deps:
	scripts/install-deps

images:
	test/images/build --out build/images all

demo: deps build
	scripts/demo

test: deps build images
	scripts/test

unit:
	$(GO) test ./...

bench: deps build images
	scripts/bench

lint:
	scripts/lint

clean:
	rm -rf bin build
