// Package bench measures tiercache against the budgets of its design and against what others do of the same job.
//
// Only ratios taken inside one run mean anything here: the machine's speed drifts by a factor of up to two between quarters of an
// hour, and both sides of a ratio drift together. So all subjects of a comparison are interleaved in short slices, in an order that
// rotates, and a figure is the median of the ratios of the rounds, with the 10th and 90th percentile beside it. Each scenario's file
// says why its workload is shaped as it is and what misleads in it.
//
// A budget that is missed is printed as MISSED and is no failure of the program: nothing here is a timed test.
package bench
