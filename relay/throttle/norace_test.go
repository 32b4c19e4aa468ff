//go:build !race

package throttle

// sources is how many come in TestMillionSources: the race detector is slow.
const sources = 1_000_000
