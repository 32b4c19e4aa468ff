//go:build !linux

package app

// unloadProgram does nothing: only Linux tells where files are mapped.
func unloadProgram() error { return nil }
