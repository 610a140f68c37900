package bench

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/filterlife"
)

// stepsOf are steps of half a second in which one counter grew.
func stepsOf(grown ...float64) (steps []sample) {
	for i, n := range grown {
		steps = append(steps, sample{time.Duration(i+1) * hotStep, hotStep, []float64{n}})
	}
	return steps
}

// A point of the hot key's picture is the mean of one MemoryTTL, so that reads that come together are not taken for too many; its budget and
// both moments are in it.
//
// Broken by: a point of its own step alone.
func TestHotKeysPictureIsOfAMemoryTTL(t *testing.T) {
	all := hotCurves(stepsOf(0, 8, 0, 0, 0, 0, 4), time.Second, 500*time.Millisecond)
	require.Equal(t, []float64{0, 8, 8 / 1.5, 4, 4, 0, 2}, all[0].Y)
	require.InDelta(t, 0.5, all[0].X[0], 1e-9)
	require.Equal(t, []kind{"", bound, moment, moment}, []kind{all[0].Kind, all[1].Kind, all[2].Kind, all[3].Kind})
	require.InDelta(t, 1.5, all[3].X[0], 1e-9)
	require.NoError(t, (&figure{curves: all[:1], bounds: all[1:2], moments: all[2:]}).check())
}

// A share of the flood's pictures is one of the requests of its own step; where there were none there is no share.
//
// Broken by: shares of all requests so far; dividing by none.
func TestFloodsPicturesAreSharesOfEachStep(t *testing.T) {
	calm := &floodRun{hits: 0.8, steps: []sample{{time.Second, time.Second, []float64{0, 10, 0, 8}}}}
	flooded := &floodRun{steps: []sample{
		{time.Second, time.Second, []float64{100, 10, 1, 5}},
		{2 * time.Second, time.Second, []float64{300, 0, 30, 0}},
		{3 * time.Second, time.Second, []float64{0, 20, 0, 20}},
	}}
	r := &Report{}
	for _, s := range floodCurves(calm, flooded, flooded, flooded) {
		s.Scenario = "penetration"
		r.Series = append(r.Series, s)
	}
	pictures := r.figures("penetration")
	require.Len(t, pictures, 2)
	require.Equal(t, []float64{1, 10}, pictures[0].curves[0].Y)
	require.Equal(t, []float64{50, 100}, pictures[1].curves[0].Y)
	require.Equal(t, []float64{0, 2}, pictures[1].curves[0].X)
	require.Len(t, pictures[1].curves, 4)
	require.InDelta(t, 78, pictures[1].bounds[0].Y[0], 1e-9)
}

// A minute of the picture has all loads of its seconds, the last one also where it is not full.
//
// Broken by: a step of one second too many.
func TestLoadsAMinute(t *testing.T) {
	l := ttlLoads{Seconds: make([]int, 130)}
	for i := range l.Seconds {
		l.Seconds[i] = 1 + i/60
	}
	require.Equal(t, []float64{30, 60, 15}, l.perMinute("ours", 200).Y, "in percent")
}

// The life of a filter is drawn as the sum of its processes' steps, in rates, with what befell them in both pictures.
//
// Broken by: counts in the place of rates; one process's course alone.
func TestFilterLifesPicturesAreOfAllProcesses(t *testing.T) {
	all := filterLifeCurves(filterlife.Report{
		Processes: []filterlife.Answer{
			{Course: []filterlife.Step{{Inserted: 1, Asked: 2}, {Asked: 1, Wrong: 1, Passing: filterLifeStep}}},
			{Course: []filterlife.Step{{Inserted: 3}, {Passing: filterLifeStep}, {Inserted: 1}}},
		},
		Moments: []filterlife.Moment{{At: time.Second, What: "trim"}},
	})
	perStep := 1 / filterLifeStep.Seconds()
	questions, inserts, wrong, passing := all[0], all[1], all[2], all[3]
	require.Equal(t, []float64{4 * perStep, 0, perStep}, inserts.Y)
	require.Equal(t, []float64{2 * perStep, perStep, 0}, questions.Y)
	require.Equal(t, []float64{0, perStep, 0}, wrong.Y)
	require.Equal(t, []float64{0, 2, 0}, passing.Y)
	require.Equal(t, []string{inserts.What, passing.What}, []string{all[5].What, all[6].What})
}

// Every picture that a scenario's code names has its sentence, and every sentence its picture.
//
// Broken by: a sentence that is left out of whatToSee.
func TestEveryPictureSaysWhatToSee(t *testing.T) {
	series := regexp.MustCompile(`Series\{[^}]*What: "([^"]+)"`)
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	found := 1 // a picture for each trace has no name of its own
	for _, file := range files {
		name, of := strings.CutPrefix(strings.TrimSuffix(file, ".go"), "scenario_")
		if file == "trace_pictures.go" {
			name, of = "traces", true
		}
		if !of {
			continue
		}
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, what := range series.FindAllStringSubmatch(string(source), -1) {
			found++
			require.Contains(t, whatToSee, name+": "+what[1], file)
		}
	}
	require.Len(t, whatToSee, found)
	require.NotEmpty(t, (&figure{scenario: "traces", what: "OLTP"}).sentence())
}
