package rebuild_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tiercache/tiercache/rebuild"
)

// Background callers and a waiting one share a call; a second wave, after Forget, begins anew.
func ExampleFlight() {
	ctx := context.Background()
	flight := rebuild.NewFlight[string]()
	release := make(chan struct{})
	flight.Start(ctx, "user:1", func(context.Context) (string, error) {
		<-release
		return "Ada", nil
	})
	again := flight.Start(ctx, "user:1", func(context.Context) (string, error) { return "", errors.New("never called") })
	fmt.Println("started twice:", again)

	flight.Forget("user:1") // the row was changed: later callers must not join the older call
	name, joined, err := flight.Do(ctx, "user:1", func(context.Context) (string, error) { return "Ada Lovelace", nil })
	fmt.Println(name, joined, err)

	close(release)
	fmt.Println("left:", flight.Close(ctx))
	// Output:
	// started twice: false
	// Ada Lovelace false <nil>
	// left: 0
}

// One slot, and it is taken: a second load waits its 10 ms and is refused; the source never sees it.
func ExampleRun() {
	ctx := context.Background()
	gate, err := rebuild.NewGate(rebuild.GateOptions{Loads: 1, Wait: 10 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	loads := rebuild.NewLoads(gate, 3*time.Second, nil)
	_, _, err = rebuild.Run(ctx, loads, func(ctx context.Context) (int, error) {
		_, _, second := rebuild.Run(ctx, loads, func(context.Context) (int, error) { return 0, nil })
		return 1, second
	})
	fmt.Println(err, errors.Is(err, rebuild.ErrOverloaded))
	fmt.Println("left:", loads.Close(ctx))
	// Output:
	// tiercache: overloaded true
	// left: 0
}
