//go:build race

package layers

// raceDetector reports that the race detector is on: it makes sync.Pool, which ristretto uses, lose things at random.
const raceDetector = true
