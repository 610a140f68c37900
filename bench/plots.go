package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Series is one curve of a picture: all series of a scenario with the same What share one. A picture whose series have one point each, or
// names, is drawn as bars.
type Series struct {
	Scenario string    `json:"scenario"`
	Subject  string    `json:"subject"` // of the curve: the legend
	What     string    `json:"what"`    // of the picture: its title and file
	Unit     string    `json:"unit"`    // of Y
	XUnit    string    `json:"x_unit,omitempty"`
	Kind     kind      `json:"kind,omitempty"`
	Log      bool      `json:"log,omitempty"`   // Y by powers of ten; what is below 1 is drawn at 1
	LogX     bool      `json:"log_x,omitempty"` // X by powers of ten; all of it above 0
	Names    []string  `json:"names,omitempty"` // of X = 0, 1, …: a group of bars each
	X        []float64 `json:"x"`
	Y        []float64 `json:"y"`
}

// kind tells a curve, the zero one, from what is drawn across a picture. Neither is a curve of its own: a picture has one at least.
type kind string

const (
	bound  kind = "bound"  // at the height of its one Y: what the curves are held against
	moment kind = "moment" // at its one X: something happened
)

func (s *Series) add(x, y float64) { s.X, s.Y = append(s.X, x), append(s.Y, y) }

// boundAt and momentAt are the lines across the picture that s is a curve of.
func (s *Series) boundAt(y float64, text string) Series {
	return Series{Subject: text, What: s.What, Kind: bound, X: []float64{0}, Y: []float64{y}}
}

func (s *Series) momentAt(x float64, text string) Series {
	return Series{Subject: text, What: s.What, Kind: moment, X: []float64{x}, Y: []float64{0}}
}

// figure is one picture.
type figure struct {
	scenario, what          string
	curves, bounds, moments []Series
}

func (f *figure) add(s Series) {
	switch s.Kind {
	case bound:
		f.bounds = append(f.bounds, s)
	case moment:
		f.moments = append(f.moments, s)
	default:
		f.curves = append(f.curves, s)
	}
}

// check returns an error for a series that cannot be drawn: without points, or with as many X as it has not Y, or across no curve.
func (f *figure) check() error {
	if len(f.curves) == 0 {
		return fmt.Errorf("%s has no curve", f.title())
	}
	names := f.curves[0].Names
	for _, s := range slices.Concat(f.curves, f.bounds, f.moments) {
		if len(s.X) == 0 || len(s.X) != len(s.Y) || s.Kind != "" && len(s.X) != 1 {
			return fmt.Errorf("series %s of %s has %d x and %d y", s.Subject, f.title(), len(s.X), len(s.Y))
		}
		if s.Kind == "" && (!slices.Equal(s.Names, names) || names != nil && len(s.X) != len(names)) {
			return fmt.Errorf("series %s of %s: %d points, %d names; the picture has %d", s.Subject, f.title(), len(s.X), len(s.Names), len(names))
		}
	}
	return nil
}

func (f *figure) title() string { return f.scenario + ": " + f.what }

// figures returns the pictures of a scenario, in the order in which their first series came.
func (r *Report) figures(scenario string) []figure {
	var all []figure
next:
	for _, s := range r.Series {
		if s.Scenario != scenario {
			continue
		}
		for i := range all {
			if all[i].what == s.What {
				all[i].add(s)
				continue next
			}
		}
		f := figure{scenario: scenario, what: s.What}
		f.add(s)
		all = append(all, f)
	}
	return all
}

// file is the picture's name in the folder of its report.
func (f *figure) file() string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(f.scenario+"-"+f.what)) + ".svg"
}

// drawAll draws every picture of the report into dir, as SVG.
func (r *Report) drawAll(dir string) error {
	var errs []error
	for _, scenario := range r.Scenarios {
		for _, f := range r.figures(scenario) {
			picture, err := f.svg()
			if err == nil {
				err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, f.file()), picture, 0o644))
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Redraw draws the page and the pictures of a run again from its JSON file, beside it, and returns the path of the page. Pictures that are
// shown outside of the page, in the README, go into the folder img too, if there is one; a run without them leaves those of img as they are. A
// file of a later schema is an error.
func Redraw(file, img string) (string, error) {
	raw, err := os.ReadFile(file) //nolint:gosec // the caller's own file
	if err != nil {
		return "", err
	}
	r := &Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if r.Schema > reportSchema {
		return "", fmt.Errorf("%s has schema %d, at most %d is known", file, r.Schema, reportSchema)
	}
	base := strings.TrimSuffix(file, ".json")
	page, err := r.page(base)
	if err != nil || img == "" {
		return page, err
	}
	for _, name := range outside {
		picture, err := os.ReadFile(filepath.Join(base, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.MkdirAll(img, 0o755), os.WriteFile(filepath.Join(img, name), picture, 0o644)); err != nil {
			return "", err
		}
	}
	return page, nil
}
