package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Series is one curve of a picture: all series of a scenario with the same What share one. A picture whose series have one point each is
// drawn as bars.
type Series struct {
	Scenario string    `json:"scenario"`
	Subject  string    `json:"subject"` // of the curve: the legend
	What     string    `json:"what"`    // of the picture: its title and file
	Unit     string    `json:"unit"`    // of Y
	XUnit    string    `json:"x_unit,omitempty"`
	Log      bool      `json:"log,omitempty"` // Y by powers of ten; what is below 1 is drawn at 1
	X        []float64 `json:"x"`
	Y        []float64 `json:"y"`
}

func (s *Series) add(x, y float64) { s.X, s.Y = append(s.X, x), append(s.Y, y) }

// palette is told apart also by the colour-blind (Okabe and Ito, 2008). Ours comes first.
var palette = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff},
	color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	color.RGBA{0x56, 0xb4, 0xe9, 0xff},
}

const (
	pictureWidth  = 20 * vg.Centimeter
	pictureHeight = 10 * vg.Centimeter
	legendLine    = 12 // points
)

// figure is one picture.
type figure struct {
	scenario, what string
	curves         []Series
}

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
				all[i].curves = append(all[i].curves, s)
				continue next
			}
		}
		all = append(all, figure{scenario, s.What, []Series{s}})
	}
	return all
}

// file is the picture's name in the folder of its report.
func (f figure) file() string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(f.scenario+"-"+f.what)) + ".svg"
}

// draw returns the picture, or an error for a series that has none: without points, or with as many X as it has not Y.
func (f figure) draw() (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = f.scenario + ": " + f.what
	p.Title.Padding = legendLine * vg.Length(len(f.curves)+1)
	p.X.Label.Text, p.Y.Label.Text = f.curves[0].XUnit, f.curves[0].Unit
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left, p.Legend.YOffs = true, true, legendLine*vg.Length(len(f.curves))+vg.Points(6) // above the curves, which it would hide
	grid := plotter.NewGrid()
	grid.Vertical.Width, grid.Horizontal.Color = 0, color.Gray{0xdd}
	p.Add(grid)
	bars := true
	for _, s := range f.curves {
		if len(s.X) == 0 || len(s.X) != len(s.Y) {
			return nil, fmt.Errorf("series %s of %s has %d x and %d y", s.Subject, p.Title.Text, len(s.X), len(s.Y))
		}
		bars = bars && len(s.X) == 1
	}
	if bars {
		return p, f.bars(p)
	}
	for i, s := range f.curves {
		line, err := plotter.NewLine(s.points())
		if err != nil {
			return nil, fmt.Errorf("series %s of %s: %w", s.Subject, p.Title.Text, err)
		}
		line.Color, line.Width = palette[i%len(palette)], vg.Points(1.6)
		p.Add(line)
		p.Legend.Add(s.Subject, line)
	}
	if f.curves[0].Log {
		p.Y.Scale, p.Y.Tick.Marker, p.Y.Min = plot.LogScale{}, plot.TickerFunc(powersOfTen), 1
		p.Y.Max = max(p.Y.Max, 10)
	}
	p.Y.Max *= 1.05 // a curve at the edge is seen
	return p, nil
}

// powersOfTen are the ticks of a logarithmic axis, with their numbers written out.
func powersOfTen(low, high float64) []plot.Tick {
	ticks := plot.LogTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = number(ticks[i].Value)
		}
	}
	return ticks
}

// bars draws one bar for each curve, its figure above it.
func (f figure) bars(p *plot.Plot) error {
	var names []string
	for i, s := range f.curves {
		bar, err := plotter.NewBarChart(plotter.Values(s.Y), vg.Points(40))
		if err != nil {
			return fmt.Errorf("series %s of %s: %w", s.Subject, p.Title.Text, err)
		}
		bar.XMin, bar.Color, bar.LineStyle.Width = float64(i), palette[i%len(palette)], 0
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: float64(i), Y: s.Y[0]}}, Labels: []string{number(s.Y[0])}})
		if err != nil {
			return fmt.Errorf("series %s of %s: %w", s.Subject, p.Title.Text, err)
		}
		label.Offset.Y = vg.Points(2)
		p.Add(bar, label)
		names = append(names, s.Subject)
	}
	p.Title.Padding = legendLine // no legend
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.7, float64(len(names))-0.3
	p.Y.Max *= 1.15 // room for the figure above its bar
	return nil
}

func (s Series) points() plotter.XYs {
	points := make(plotter.XYs, len(s.X))
	for i := range points {
		points[i] = plotter.XY{X: s.X[i], Y: s.Y[i]}
		if s.Log {
			points[i].Y = max(points[i].Y, 1)
		}
	}
	return points
}

// drawAll draws every picture of the report into dir, as SVG.
func (r *Report) drawAll(dir string) error {
	var errs []error
	for _, scenario := range r.Scenarios {
		for _, f := range r.figures(scenario) {
			p, err := f.draw()
			if err == nil {
				err = errors.Join(os.MkdirAll(dir, 0o755), p.Save(pictureWidth, pictureHeight, filepath.Join(dir, f.file())))
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Redraw draws the page and the pictures of a run again from its JSON file, beside it, and returns the path of the page. A file of
// another schema is an error.
func Redraw(file string) (string, error) {
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
	return r.page(strings.TrimSuffix(file, ".json"))
}
