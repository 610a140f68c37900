# The house in commands. It needs Go and make; what else a target needs it fetches or builds itself, or says what is missing.
# `make help` lists the targets.

.DEFAULT_GOAL := help
.PHONY: help fmt lint test race integration fuzz fleet fleet-broken storm bench traces bench-plots bench-compare cover docs tools hooks check \
	fmt-check vet tidy tidy-check docs-check modules-check redis

# The modules that stand beside the library's own and build on it. internal/tools stands apart: see its go.mod.
MODULES := $(patsubst %/go.mod,%,$(wildcard bench/go.mod examples/go.mod))
ALL     := . $(MODULES)

BIN      := $(CURDIR)/bin
LINT     := $(BIN)/golangci-lint
REF      ?= main
FUZZTIME ?= 10s
RUNS     ?= 10000
SEED     ?= $(shell date +%s)
REAL     ?= 20
FAILOVERS ?= 5
COUNT    ?= 10
STORM    ?= 10s

# A build stamped with the state of git would differ from checkout to checkout, and fails where git is missing.
export GOFLAGS := -buildvcs=false $(filter-out -buildvcs=%,$(GOFLAGS))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

fmt: $(LINT) ## format the Go code of all modules (gofumpt, gci)
	@$(LINT) fmt

lint: $(LINT) ## run golangci-lint over every module
	@bad=; for m in $(ALL); do echo "lint $$m"; (cd $$m && $(LINT) run --allow-parallel-runners --config $(CURDIR)/.golangci.yml ./...) || bad=1; done; [ -z "$$bad" ]

test: redis ## all fast tests, with the race detector where there is a C compiler; fetches redis-server where it may
	@sh scripts/test.sh auto
	@$(MAKE) --no-print-directory modules-check

race: redis ## the same, and a failure where the race detector cannot run
	@sh scripts/test.sh race

integration: redis ## the same on real Redis only: nothing may be skipped or imitated
	@TIERCACHE_REQUIRE_REDIS=1 sh scripts/test.sh auto

fuzz: ## each fuzz test for FUZZTIME (10s)
	@sh scripts/fuzz.sh $(FUZZTIME)

fleet: redis ## RUNS (10000) random runs of a fleet in virtual time, from SEED (drawn) on, then REAL (20) of them on a real server and FAILOVERS (5) each under sentinels and in a cluster
	TIERCACHE_FLEET_RUNS=$(RUNS) TIERCACHE_FLEET_SEED=$(SEED) TIERCACHE_FLEET_REAL=$(REAL) TIERCACHE_FLEET_FAILOVERS=$(FAILOVERS) \
		go test -count=1 -timeout 0 -run '^TestFleet' -v ./internal/fleet

storm: redis ## each fault of docs/operations.md for STORM (10s) under 200 callers, and its table
	TIERCACHE_STORM=$(STORM) go test -count=1 -timeout 0 -run '^TestStorm' -v .

fleet-broken: ## leave out one rule of the protocol at a time: the fleet must notice each
	go test -count=1 -timeout 30m -tags broken -run '^TestEveryRuleLeftOutIsCaught$$' -v ./internal/fleet

bench: redis ## the benchmarks of bench/ in one interleaved run, as ratios (ARGS=-quick for a short one)
	@go run ./bench/cmd/bench $(ARGS)

traces: ## hit ratios and bytes an entry on the recorded traces below DIR; without DIR on made ones
	@go run ./bench/cmd/bench -scenarios traces,footprint -traces "$(DIR)" $(ARGS)

bench-plots: ## the page and pictures of a run of bench again, from its file (RESULT=bench/results/….json), and those of docs/img
	@go run ./bench/cmd/bench -redraw '$(RESULT)' -img docs/img

bench-compare: $(BIN)/benchstat ## Go benchmarks of this tree against REF (main), COUNT (10) rounds, interleaved
	@sh scripts/bench-compare.sh $(REF) $(COUNT)

cover: redis ## the tests' coverage, as a page in bin/cover.html
	@mkdir -p $(BIN)
	go test -coverpkg=./... -coverprofile=$(BIN)/cover.out ./...
	go tool cover -html=$(BIN)/cover.out -o $(BIN)/cover.html
	@go tool cover -func=$(BIN)/cover.out | tail -1

docs: ## write the code blocks of the Markdown files anew from the code they come from, and check all links
	TIERCACHE_UPDATE_DOCS=1 go test -count=1 -run '^TestDocs' .

tools: $(LINT) $(BIN)/gofumpt $(BIN)/gci $(BIN)/benchstat ## build the pinned tools into bin/

hooks: ## install the pre-commit hook: format, vet and short tests of what changed
	@sh scripts/hooks.sh

check: tidy-check fmt-check vet lint docs-check test ## everything that .ci/run checks

# The parts of check.

fmt-check: $(LINT)
	@$(LINT) fmt --diff-colored=false --diff >$(BIN)/fmt.diff 2>&1 && ! [ -s $(BIN)/fmt.diff ] || \
		{ cat $(BIN)/fmt.diff; echo "not formatted: run 'make fmt'"; exit 1; }
	@echo "format: clean"

vet:
	@for m in $(ALL); do echo "vet $$m"; (cd $$m && go vet ./...) || exit 1; done

tidy: ## go mod tidy in every module
	@for m in $(ALL) internal/tools; do (cd $$m && GOWORK=off go mod tidy) || exit 1; done

tidy-check:
	@for m in $(ALL) internal/tools; do (cd $$m && GOWORK=off go mod tidy -diff) || { echo "$$m: run 'make tidy'"; exit 1; }; done
	@echo "go.mod and go.sum: tidy"

docs-check:
	@go test -count=1 -run '^TestDocs' .

# The modules beside the library are built and run their short tests without the race detector, which would compile a whole
# database engine a second time.
modules-check: redis
	@for m in $(MODULES); do echo "test $$m"; (cd $$m && go build -o /dev/null ./... && go test -short ./...) || exit 1; done

redis:
	@sh scripts/redis.sh

$(LINT): internal/tools/go.mod internal/tools/go.sum
	$(call build,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
$(BIN)/gofumpt: internal/tools/go.mod internal/tools/go.sum
	$(call build,mvdan.cc/gofumpt)
$(BIN)/gci: internal/tools/go.mod internal/tools/go.sum
	$(call build,github.com/daixiang0/gci)
$(BIN)/benchstat: internal/tools/go.mod internal/tools/go.sum
	$(call build,golang.org/x/perf/cmd/benchstat)

define build
	@echo "build $(notdir $@) (the first time this takes a minute or two)"
	@mkdir -p $(BIN)
	@cd internal/tools && GOWORK=off go build -o $@ $(1)
	@touch $@
endef
