# make help lists the targets. Go, Node and make are all that a fresh machine
# needs for run and test; e2e and bench also install Debian packages.

GO            ?= go
GOLANGCI      := $(CURDIR)/bin/golangci-lint
GOLANGCI_VER  := v2.15.0
NPM           := npm --prefix grafana-plugin
PLUGIN_DEPS   := grafana-plugin/node_modules/.package-lock.json
VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS       := -s -w -X waybill/cmd/internal/app.Version=$(VERSION)
# Postfix wants to be started by root.
AS_ROOT       := $(if $(filter 0,$(shell id -u)),,-exec sudo)

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/waybill
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/waybill ./cmd/waybill

.PHONY: run
run: build ## Build, and run a complete relay with mail flowing (waybill demo)
	@./bin/waybill demo $(ARGS)

.PHONY: test
test: test-go test-plugin ## Every test that needs no other server: Go, TypeScript, dashboards

.PHONY: test-go
test-go: ## Vet and test the Go code
	$(GO) vet ./...
	$(GO) test -vet=off -shuffle=on -timeout 20m -ldflags '-s -w' ./...

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

.PHONY: plugin
plugin: $(PLUGIN_DEPS) ## Build the Grafana plugin: frontend and backend, in grafana-plugin/dist
	$(NPM) run build
	cd grafana-plugin && $(GO) run github.com/magefile/mage -v build:linux

.PHONY: race
race: ## Go tests with the race detector, in random order
	CGO_ENABLED=1 $(GO) test -vet=off -race -shuffle=on -timeout 20m -ldflags '-s -w' ./...

.PHONY: lint
lint: $(GOLANGCI) ## Lint and check formatting
	$(GOLANGCI) run ./...
	$(GOLANGCI) fmt --diff ./...

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
	$(GO) test -v -count=1 -timeout 20m -tags e2e $(AS_ROOT) ./cmd/internal/e2e/
	WAYBILL_REQUIRE_PROMTOOL=1 $(GO) test -count=1 -timeout 10m -tags e2e ./dashboards/ ./metrics/
	$(NPM) run screens

.PHONY: bench
bench: build ## Measure against Postfix on this machine's disk; prints tables
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
