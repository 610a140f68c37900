package bench

import "fmt"

// traceCurves are a trace's picture: the hit ratio over the capacity, a curve a subject. Those of several goroutines would lie upon those of one.
func traceCurves(trace string, points []tracePoint) []Series {
	var curves []Series
	for _, subject := range []string{"tiercache", "otter", "LRU", "ristretto", optimumName} {
		s := Series{
			Subject: subject, What: trace, Unit: "% hits", LogX: true,
			XUnit: fmt.Sprintf("entries (log), %g to %g %% of the keys", points[0].share, points[len(points)-1].share),
		}
		for i, p := range points {
			if i == 0 || p.entries != points[i-1].entries {
				s.add(float64(p.entries), p.ratios[subject])
			}
		}
		curves = append(curves, s)
	}
	return curves
}

// tracePoints are the local tier's points of hit ratio against otter's, trace by trace: what each has with one goroutine, and with several.
type tracePoints struct {
	names         []string
	one, parallel []float64
}

func (t *tracePoints) add(name string, means map[string]float64) {
	t.names = append(t.names, name)
	t.one = append(t.one, means["tiercache"]-means["otter"])
	t.parallel = append(t.parallel, means[parallelName("tiercache")]-means[parallelName("otter")])
}

func (t *tracePoints) series() []Series {
	bars := Series{Subject: "one goroutine", What: "points against otter", Unit: "points of hit ratio, mean", Names: t.names}
	parallel := bars
	parallel.Subject = fmt.Sprintf("%d goroutines, otter's too", traceWorkers)
	for i := range t.names {
		bars.add(float64(i), t.one[i])
		parallel.add(float64(i), t.parallel[i])
	}
	return []Series{bars, parallel, bars.boundAt(-5, "budget of a trace: -5"), bars.boundAt(-1, "budget of the mean: -1")}
}
