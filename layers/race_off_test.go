//go:build !race

package layers

// raceDetector reports that the race detector is on.
const raceDetector = false
