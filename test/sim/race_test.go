//go:build race

package sim

// raceDetector makes a simulation ten times slower, and there is only one goroutine in it.
const raceDetector = true
