// Command lab runs servers for Ironspan's development: QEMU machines with a distribution's kernel, KVM,
// and soft-RoCE over a private wire, on a machine that may have none of these.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"ironspan/tools/lab/internal/agent"
	"ironspan/tools/lab/internal/lab"
)

type cli struct {
	Name string `help:"Name of the lab; several may be up at once." default:"default" env:"IRONSPAN_LAB_NAME" short:"n"`

	Up     upCmd     `cmd:"" help:"Bring up servers and return when all answer."`
	Exec   execCmd   `cmd:"" help:"Run a command in a server."`
	Status statusCmd `cmd:"" help:"Say what is up."`
	Down   downCmd   `cmd:"" help:"End a lab and remove its state."`

	Fetch  fetchCmd  `cmd:"" help:"Get kernels (and QEMU) from the distribution's archive; print where they are."`
	Kernel kernelCmd `cmd:"" help:"Print the path of a kernel, fetching it if it is not there."`
	Kill   killCmd   `cmd:"" help:"Switch a server off, as a power cut would."`
	Link   linkCmd   `cmd:"" help:"Cut, mend or worsen a server's link."`

	Modprobe modprobeCmd `cmd:"" help:"Load kernel modules in a server."`
	Program  programCmd  `cmd:"" help:"Print how to run a program of the distribution in a server, fetching it if it is not there."`

	Test testCmd `cmd:"" help:"Run Go packages' tests in a server."`
	Run  runCmd  `cmd:"" help:"Boot a guest as one Ironspan VM over servers of a lab of its own."`

	Calibrate calibrateCmd `cmd:"" hidden:""`
	TestExec  testExecCmd  `cmd:"" hidden:""`
	Supervise superviseCmd `cmd:"" hidden:""`
	Insmod    insmodCmd    `cmd:"" hidden:""`
}

// exitStatus ends the program with a status of its own, silently: all is said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

const description = `Servers for Ironspan on any Linux machine: QEMU virtual machines with a distribution's
kernel, nested KVM, and soft-RoCE (rxe) over a private wire with jumbo frames. They see this machine's
files read-only at their own paths (a fresh /tmp and /run apart; all of it is also below /host).`

func main() {
	if agent.IsInit() {
		agent.Main()
	}
	var c cli
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	k := kong.Parse(&c, kong.Name("lab"), kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	k.Bind(&c)
	err := k.Run()
	var status exitStatus
	switch {
	case err == nil:
	case errors.As(err, &status):
		os.Exit(int(status))
	default:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (c *cli) dir() (lab.Dir, error) { return lab.Open(c.Name) }

type superviseCmd struct {
	Lab string `arg:""`
}

func (s *superviseCmd) Run() error { return lab.Supervise(s.Lab) }
