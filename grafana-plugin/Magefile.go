//go:build mage

// Package main is the Magefile: the SDK's own build targets for the backend.
package main

import (
	// mage:import
	build "github.com/grafana/grafana-plugin-sdk-go/build"
)

// Default configures the default target.
var Default = build.BuildAll
