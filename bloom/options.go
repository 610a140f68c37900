package bloom

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
)

// defaultRate is ten bits a key, where storage engines settle too (RocksDB: 9.9 to 10 bits a key).
const defaultRate = 0.01

// maxBytes bounds the bits of one filter: its snapshot is one Redis string, which holds at most 512 MiB.
const maxBytes = 500 << 20

// maxHashes bounds the probes of one key. The smallest rate that New takes needs fewer.
const maxHashes = 64

// minRate is the smallest false-positive rate: below it a key costs more than 57 bits and 40 probes for nothing that a cache needs.
const minRate = 1e-12

// Form is where a filter's bits are.
type Form uint8

// The forms.
const (
	// PerProcess is a copy in every process: a check costs no round trip. Up to 500 MiB.
	PerProcess Form = iota
	// InRedis is one filter in Redis and none in the processes, for key sets too big for them: a check is a round trip. Up to 64 GiB, in
	// strings of at most 4 MiB.
	InRedis
)

// Options are the size and the form of a filter. The zero value asks for no filter.
type Options struct {
	// Capacity is the number of rows expected; 1.5 times today's rows leaves room to grow. With more rows the filter stays right
	// but lets more absent keys pass: 2.7 % at 1.25 times the capacity, 16 % at twice (for a rate of 1 %).
	Capacity uint64
	// FalsePositiveRate is the fraction of absent keys that pass when Capacity keys are in, in (0,1); 0: 0.01. A key costs 1.2 bytes
	// at 0.01, 1.8 at 0.001.
	FalsePositiveRate float64
	// Form is where its bits are; zero: in every process.
	Form Form
}

// Enabled reports whether o asks for a filter at all.
func (o Options) Enabled() bool { return o != Options{} }

// check returns o with its defaults and all of its mistakes in one error, for a filter in this process.
func (o Options) check() (Options, error) {
	o, mistakes := o.checked()
	// In floats first: the library computes in uint, which an absurd capacity overflows.
	if bits := -float64(o.Capacity) * math.Log(o.FalsePositiveRate) / (math.Ln2 * math.Ln2); bits > maxBytes*8 {
		mistakes = append(mistakes, fmt.Errorf("bloom: Capacity %d at FalsePositiveRate %v needs %.0f MiB in every process, more than the %d MiB a filter may have",
			o.Capacity, o.FalsePositiveRate, bits/8/(1<<20), maxBytes>>20))
	}
	return o, errors.Join(mistakes...)
}

// checked returns o with its defaults, also where a field is wrong, and the mistakes that no form of filter allows.
func (o Options) checked() (Options, []error) {
	var mistakes []error
	if o.Capacity == 0 {
		mistakes = append(mistakes, errors.New("bloom: Capacity must be the number of rows expected, at least 1"))
	}
	if o.FalsePositiveRate == 0 {
		o.FalsePositiveRate = defaultRate
	}
	if rate := o.FalsePositiveRate; !(rate >= minRate && rate < 1) { // so written that NaN is a mistake too
		mistakes = append(mistakes, fmt.Errorf("bloom: FalsePositiveRate %v is not in [%v,1)", rate, minRate))
		o.FalsePositiveRate = defaultRate
	}
	if o.Form > InRedis {
		mistakes = append(mistakes, fmt.Errorf("bloom: Form %d is none of the known", o.Form))
	}
	return o, mistakes
}

// size is how many bits that filter has.
func (o Options) size() uint64 {
	m, _ := bloom.EstimateParameters(uint(o.Capacity), o.FalsePositiveRate)
	return uint64(max(m, 1))
}

// bits allocates the library's filter for o, which was checked.
func (o Options) bits() *bloom.BloomFilter {
	return bloom.NewWithEstimates(uint(o.Capacity), o.FalsePositiveRate)
}

// BuildOptions are how a filter is built from a scan.
type BuildOptions struct {
	// RowsPerSecond bounds the speed of the scan; 0: no limit; negative: an error. A scan that was slower for a while does not
	// make up for it by more than a tenth of a second's rows.
	RowsPerSecond int
	// Progress, if set, is called on the building goroutine with the rows done: every 1,000 rows or 100 ms, whichever is first
	// noticed at a row, and once at the end.
	Progress func(done uint64)
	// Report, if set, is called on the building goroutine with how far the build came: ten times a second, as noticed at a row, and once at
	// the end.
	Report func(BuildProgress)
	// Expected is about how many rows the scan should give, as the source's statistics tell it; 0: unknown. With fewer than nine tenths of it, or
	// more than one and a half times, the build fails with ErrImplausible: a scan that was cut short without an error would hide rows.
	Expected uint64
	// ReplicaLag is how long an announced row may take until it is in what is scanned: for its insert to commit, and to reach the
	// replica. 0, and anything shorter: Reach. A longer one needs a store, which has the announcements; negative: an error.
	ReplicaLag time.Duration
	// Checkpoint is how often a BuildFrom stores how far it came; 0: 30 s; negative: never, nor is an earlier build gone on with. Storing it
	// takes no more than a twentieth of the time, so a large filter is stored less often.
	Checkpoint time.Duration
}
