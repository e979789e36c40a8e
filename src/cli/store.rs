//! `store export` and `store import`: everything of a store into a file and out of it again.
//!
//! What is moved goes to standard output or comes from standard input unless a file is named; how far it has come goes to
//! standard error. A file is readable by nobody else: it holds no secret, but it tells who did what when.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{ConfigArgument, Failure, terminal};
use crate::config::Config;
use crate::store::moving::{self, Counts, MoveError, Progress};

/// The name that stands for standard input or output.
const STANDARD: &str = "-";
/// Bytes read or written at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// What standard input is kept in while it is read twice; nobody else sees it, and it goes with the process.
const KEPT_NAME: &str = "store.importing.jsonl";

/// What is done with a store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Write all keys, the activity log and the marks of spools as lines of JSON.
    Export(ExportArguments),
    /// Read them into an empty store; after a crash, once more, to complete it.
    Import(ImportArguments),
}

/// Where an export comes from and goes to.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// Which configuration names the store.
    #[command(flatten)]
    configuration: ConfigArgument,
    /// A file that does not exist yet; `-` is standard output.
    #[arg(long, value_name = "FILE", default_value = STANDARD)]
    output: PathBuf,
}

/// Where an import comes from and goes to.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// Which configuration names the store.
    #[command(flatten)]
    configuration: ConfigArgument,
    /// An export; `-` is standard input.
    #[arg(long, value_name = "FILE", default_value = STANDARD)]
    input: PathBuf,
}

impl StoreCommand {
    /// Which configuration names the store.
    pub fn configuration(&self) -> &ConfigArgument {
        match self {
            Self::Export(arguments) => &arguments.configuration,
            Self::Import(arguments) => &arguments.configuration,
        }
    }
}

/// Moves out of, or into, the store that the configuration names.
///
/// # Errors
/// A sentence: above all that gateways run on the store, that it is not empty, or which line of the file is wrong.
pub async fn store(command: &StoreCommand, config: &Config) -> Result<(), Failure> {
    let (done, counts) = match command {
        StoreCommand::Export(arguments) => ("exported", export(&arguments.output, config).await?),
        StoreCommand::Import(arguments) => ("imported", import(&arguments.input, config).await?),
    };
    terminal::remark(&format!("{done}: {counts}"));
    Ok(())
}

async fn export(output: &Path, config: &Config) -> Result<Counts, Failure> {
    if output == Path::new(STANDARD) {
        return Ok(write(io::stdout(), config).await?);
    }
    let mut private = OpenOptions::new();
    private.write(true).create_new(true).mode(0o600);
    let file = private.open(output).map_err(|error| Failure::new(format!("cannot make {}: {error}", output.display())))?;
    let written = write(&file, config).await.and_then(|counts| Ok(file.sync_all().map(|()| counts)?));
    if written.is_err() {
        // Half an export is of no use, and would stand in the way of the next attempt.
        let _ = fs::remove_file(output);
    }
    Ok(written?)
}

async fn write(out: impl Write + Send, config: &Config) -> Result<Counts, MoveError> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    moving::export(config, &mut out, Progress::new(&mut terminal::remark)).await
}

async fn import(input: &Path, config: &Config) -> Result<Counts, Failure> {
    let file = if input == Path::new(STANDARD) { kept(io::stdin().lock(), &config.own_folder()) } else { File::open(input) };
    let file = file.map_err(|error| Failure::new(format!("cannot read {}: {error}", input.display())))?;
    let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(moving::import(config, &mut file, Progress::new(&mut terminal::remark)).await?)
}

/// Keeps what can be read only once in a file without a name.
fn kept(mut from: impl Read, folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(KEPT_NAME);
    let mut private = OpenOptions::new();
    private.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut file = private.open(&path)?;
    fs::remove_file(&path)?;
    io::copy(&mut from, &mut file)?;
    file.rewind()?;
    Ok(file)
}

impl From<MoveError> for Failure {
    fn from(error: MoveError) -> Self {
        // Not as other errors of input and output: a reader that has seen enough has not seen the trailer.
        Self::new(error.to_string())
    }
}
