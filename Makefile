# make help lists the targets. Go, Node and make are all that a fresh machine
# needs for run and test; e2e and bench also install Debian packages.

GO            ?= go
GOLANGCI      := $(CURDIR)/bin/golangci-lint
GOLANGCI_VER  := v2.15.0
NPM           := npm --prefix grafana-plugin
PLUGIN_DEPS   := grafana-plugin/node_modules/.package-lock.json
VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS       := -s -w -X waybill/cmd/internal/app.Version=$(VERSION)
# One way to compile for all: what the program, its tests, the plugin and the
# linter share is then compiled once. The tag is the one that Grafana's SDK
# builds plugins with. The program is built without cgo, so that is how it is
# tested; the race detector, which needs cgo, compiles everything again.
TAGS          := arrow_json_stdlib
export GOFLAGS := $(strip $(shell $(GO) env GOFLAGS) -trimpath -tags=$(TAGS))
export CGO_ENABLED := 0
# Tests mostly wait: at least four packages at once.
AT_ONCE       := $(shell n=$$(nproc 2>/dev/null || echo 4); echo $$((n > 4 ? n : 4)))
TEST          := $(GO) test -p $(AT_ONCE) -vet=off -shuffle=on -timeout 20m -ldflags '-s -w'
# Packages that start no goroutine and share nothing, which a test of
# cmd/internal/arch holds: the race detector would find nothing there.
NO_RACE       := cmd/internal/arch cmd/internal/config dashboards logtrack/trackexport logtrack/trackimport relay/dane relay/dsn relay/policy relay/route
# The rules' tests take a while. Whoever demands promtool has made make test run them.
RULES         := $(if $(WAYBILL_REQUIRE_PROMTOOL),,|TestPromtool|TestAmtool)
# Postfix wants to be started by root.
AS_ROOT       := $(if $(filter 0,$(shell id -u)),,-exec sudo)

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/waybill
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/waybill ./cmd/waybill

.PHONY: run
run: build ## Build, and run a complete relay with mail flowing (waybill demo)
	@./bin/waybill demo $(ARGS)

.PHONY: test
test: test-go test-plugin ## Every test that needs no other server: Go, TypeScript, dashboards

.PHONY: test-go
test-go: ## Test the Go code (make lint vets it)
	$(TEST) ./...

.PHONY: test-plugin
test-plugin: $(PLUGIN_DEPS) ## Check, test and build the Grafana plugin's frontend
	$(NPM) run typecheck
	$(NPM) run lint
	$(NPM) run test:ci
	$(NPM) run build

# Not "npm ci": it wants the packages of every platform in the lock file, and a
# registry may lack some.
$(PLUGIN_DEPS): grafana-plugin/package-lock.json
	@echo "installing the plugin's npm packages (about a minute, 700 MB)"
	$(NPM) install --no-save --no-audit --no-fund

.PHONY: plugin-deps
plugin-deps: $(PLUGIN_DEPS) ## Install the plugin's npm packages

.PHONY: plugin
plugin: $(PLUGIN_DEPS) ## Build the Grafana plugin: frontend and backend, in grafana-plugin/dist
	$(NPM) run build
	cd grafana-plugin && $(GO) run github.com/magefile/mage -v build:linux

.PHONY: race
race: ## Go tests with the race detector, in random order
	CGO_ENABLED=1 $(TEST) -race $$($(GO) list ./... | grep -vxF $(NO_RACE:%=-e waybill/%))

.PHONY: lint
lint: $(GOLANGCI) ## Lint and check formatting
	$(GOLANGCI) run ./...
	$(GOLANGCI) fmt --diff ./...

.PHONY: lint-tool
lint-tool: $(GOLANGCI) ## Build the linter

.PHONY: fmt
fmt: $(GOLANGCI) ## Format the Go code
	$(GOLANGCI) fmt ./...

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VER) (a few minutes, once)"
	GOBIN=$(CURDIR)/bin $(GO) install -ldflags '-s -w' github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VER)

.PHONY: fuzz
fuzz: ## Run every fuzz target for a while (FUZZTIME=30s)
	@./.ci/fuzz $(or $(FUZZTIME),30s)

.PHONY: e2e
e2e: build plugin ## Real peers: Postfix, swaks, curl, Prometheus, Chromium, kill -9
	./.ci/install-peers
	$(TEST) -v -count=1 -parallel 8 -tags e2e,$(TAGS) $(AS_ROOT) ./cmd/internal/e2e/
	WAYBILL_REQUIRE_PROMTOOL=1 $(TEST) -v -count=1 -tags e2e,$(TAGS) -run 'TestStack$(RULES)' ./dashboards/ ./metrics/
	$(NPM) run screens

.PHONY: bench
bench: build ## Measure against Postfix on this machine's disk; prints tables (ARGS=--help)
	./.ci/install-peers postfix
	$(GO) run ./cmd/internal/bench $(ARGS)
	$(GO) test -run '^$$' -bench 'Search1M|Ingest' -benchtime 1x -timeout 30m ./logtrack

.PHONY: bench-tracking
bench-tracking: ## Fill a tracking store and ask it (EVENTS=10000000 COMPARE=victorialogs)
	$(GO) run ./cmd/internal/benchtracking -events $(or $(EVENTS),1000000) -compare '$(COMPARE)' $(ARGS)

.PHONY: docs
docs: ## Regenerate docs/reference
	$(GO) test ./cmd/waybill ./cmd/internal/config ./metrics ./relay/event -run 'Reference|Exposition' -update

.PHONY: check
check: ## Exactly what CI runs
	./.ci/run

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist grafana-plugin/dist grafana-plugin/node_modules
