package bloom

import "time"

// Progress is told every progressRows or progressEvery, a Report no more often than progressEvery; its rate is of about the last rateOver. All
// chosen; not tuned.
const (
	progressRows  = 1000
	progressEvery = 100 * time.Millisecond
	rateOver      = 10 * time.Second
)

// BuildProgress is how far a build came.
type BuildProgress struct {
	Rows     uint64        // done, Resumed included
	Resumed  uint64        // of them, what a build before this one had done
	Kept     uint64        // of Rows, what will not be read again should this build be cut off now; 0 while there is no checkpoint
	Expected uint64        // as in BuildOptions; 0: unknown
	Took     time.Duration // since this build began
	Rate     float64       // rows a second, of about the last ten seconds
}

// Left estimates how long the rows that are left take at the present rate: 0 when there are at least as many as expected, -1 where nothing can
// be said, since none are expected or none come.
func (p BuildProgress) Left() time.Duration {
	switch {
	case p.Expected == 0:
		return -1
	case p.Rows >= p.Expected:
		return 0
	case p.Rate <= 0:
		return -1
	}
	return time.Duration(float64(p.Expected-p.Rows) / p.Rate * float64(time.Second))
}

// telling is what was told of a scan.
type telling struct {
	from     time.Time // when the reading began
	told     time.Time // when Progress was last called
	reported time.Time // when Report was last called
	thenAt   uint64    // rows at that moment
	rate     float64
}

// tell tells of the scan what is due.
func (s *scan) tell(now time.Time, last bool) {
	if f := s.options.Progress; f != nil && (last || s.count%progressRows == 0 || now.Sub(s.told) >= progressEvery) {
		s.told = now
		f(s.count)
	}
	if f := s.options.Report; f != nil && (last || now.Sub(s.reported) >= progressEvery) {
		s.rateAt(now)
		f(BuildProgress{
			Rows: s.count, Resumed: s.resumed, Kept: s.kept, Expected: s.options.Expected, Took: now.Sub(s.started), Rate: s.rate,
		})
	}
}

// rateAt brings the rate up to date: the mean of all rows while the scan is young, later one in which the older rows count for less.
func (s *scan) rateAt(now time.Time) {
	passed := now.Sub(s.reported)
	if passed <= 0 {
		return
	}
	lately := float64(s.count-s.thenAt) / passed.Seconds()
	weight := min(1, float64(passed)/float64(min(rateOver, now.Sub(s.from))))
	s.rate += weight * (lately - s.rate)
	s.reported, s.thenAt = now, s.count
}
